"""What the browser tests need: servers of notebooks, and what a page of theirs shows."""

import base64
import contextlib
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image
from playwright import sync_api

from maetok_lab.widgets.front import png_bytes

HERE = Path(__file__).parent
PATIENCE = 60  # seconds for a picture; the machine may be busy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(server, address, *, seconds):
    """Until the server answers, or has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=seconds).close()
            return
        time.sleep(0.5)


@contextlib.contextmanager
def serving(command, folder, port, path):
    """A server in `folder` until it answers at `path`; its log is in server.log."""
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": paths},
        )
        try:
            wait_for(server, f"http://127.0.0.1:{port}{path}", seconds=120)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def write_notebook(folder, name):
    code = (
        f"import browser_parts\n{'await ' if name == 'live_training' else ''}browser_parts.{name}()"
    )
    cell = nbformat.v4.new_code_cell(code)
    book = nbformat.v4.new_notebook(
        cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    nbformat.write(book, folder / f"{name}.ipynb")


def local(url):
    return (
        re.match(r"(data|blob|about|chrome)[:-]|(https?|wss?)://(127\.0\.0\.1|localhost)[:/]", url)
        is not None
    )


PIXELS = """() => [...document.querySelectorAll('img')]
  .filter(i => i.complete && i.naturalWidth).map(i => {
    const c = document.createElement('canvas');
    c.width = i.naturalWidth; c.height = i.naturalHeight;
    c.getContext('2d').drawImage(i, 0, 0);
    return c.toDataURL('image/png').split(',')[1]; })"""


def shown(page):
    """Every picture of the page as uint8 (h, w, 3)."""
    files = [io.BytesIO(base64.b64decode(text)) for text in page.evaluate(PIXELS)]
    return [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in files]


def assert_shows(page, pixels, size):
    """The picture is on the page, to one level of 255, before patience ends."""
    picture = Image.open(io.BytesIO(png_bytes(pixels, size=size))).convert("RGB")
    expected = np.asarray(picture).astype(int)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(sync_api.Error):  # a picture that was replaced while it was read
            for pixels in shown(page):
                if pixels.shape == expected.shape and abs(pixels - expected).max() <= 1:
                    return
        time.sleep(0.2)
    raise AssertionError(f"no picture of the page is the expected one of {expected.shape}")


def slider(page, label):
    return page.locator(".widget-slider", has_text=label)
