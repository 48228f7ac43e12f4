"""What the browser tests need: servers of notebooks, and what a page of theirs shows."""

import base64
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from playwright import sync_api

from maetok_lab.widgets.front import png_bytes

HERE = Path(__file__).parent
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(HERE.parent)
    from serving import free_port, studio

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PATIENCE = 60  # seconds for a picture; the machine may be busy


MARKS = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="browser tests need chromium: apt install chromium"
    ),
]


def wait_for(server, address, *, seconds):
    """Until the server answers, or has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=seconds).close()
            return
        time.sleep(0.5)


@contextlib.contextmanager
def serving_lab(command, folder, port):
    """JupyterLab in `folder`, once it answers; its log is in server.log."""
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
            wait_for(server, f"http://127.0.0.1:{port}/lab?token=t", seconds=120)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def write_notebook(folder, name, parts=()):
    """A notebook of one cell for each of `parts`, by default the one that it is named after."""
    cells = []
    for part in parts or [name]:
        waits = "await " if part == "live_training" else ""
        code = f"import browser_parts\n{waits}browser_parts.{part}()"
        cells.append(nbformat.v4.new_code_cell(code))
    kernel = {"name": "python3", "display_name": "Python 3"}
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(book, folder / f"{name}.ipynb")


LAB = ["jupyter", "lab", "--allow-root", "--no-browser", "--ServerApp.ip=127.0.0.1"]
LAB += ["--IdentityProvider.token=t", "--LabApp.news_url="]
LAB += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]


@contextlib.contextmanager
def serving_notebooks(front, folder):
    """`address(name)` of a notebook's page in that front end: "lab" or "studio".

    A studio serves one notebook: each has a server from when its address is first asked for.
    """
    with contextlib.ExitStack() as servers:
        if front == "lab":
            port = free_port()
            command = [*LAB, f"--port={port}", f"--ServerApp.root_dir={folder}"]
            lab = servers.enter_context(serving_lab(command, folder, port))
            # `reset`: no tabs of an earlier page
            yield lambda name: f"{lab}/lab/tree/{name}.ipynb?token=t&reset"
            return
        addresses = {}

        def address(name):
            if name not in addresses:
                place = folder / f"server of {name}"
                place.mkdir()
                server = studio(folder / f"{name}.ipynb", place, path=[HERE])
                addresses[name] = servers.enter_context(server).address
            return addresses[name]

        yield address


STARTED = """() => [...document.querySelectorAll('.jp-InputPrompt')]
  .some(prompt => /\\[(\\*|\\d+)\\]/.test(prompt.textContent))"""


def run_all(page):
    """Run the cells of JupyterLab's notebook."""
    page.wait_for_selector(".jp-Notebook")
    page.wait_for_function(
        "() => document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]')"
    )
    # JupyterLab says that it is idle a little before it hears the menu
    for _ in range(3):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        with contextlib.suppress(sync_api.TimeoutError):
            page.wait_for_function(STARTED, timeout=20_000)
            return


def local(url):
    return (
        re.match(r"(data|blob|about|chrome)[:-]|(https?|wss?)://(127\.0\.0\.1|localhost)[:/]", url)
        is not None
    )


# stills that wait beside a living view are not what a person sees
PIXELS = """() => [
    ...[...document.querySelectorAll('img')]
      .filter(i => i.complete && i.naturalWidth && !i.closest('.maetok-still')).map(i => {
        const c = document.createElement('canvas');
        c.width = i.naturalWidth; c.height = i.naturalHeight;
        c.getContext('2d').drawImage(i, 0, 0);
        return c; }),
    ...document.querySelectorAll('canvas:not(.maetok-marks):not(.maetok-board canvas)'),
  ].filter(c => c.width).map(c => c.toDataURL('image/png').split(',')[1])"""


def shown(page):
    """Every picture of the page as uint8 (h, w, 3)."""
    files = [io.BytesIO(base64.b64decode(text)) for text in page.evaluate(PIXELS)]
    return [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in files]


def assert_shows(page, pixels, size=1, *, patience=PATIENCE):
    """The picture is on the page, to one level of 255, before patience ends. -> seconds

    `size`: see `png_bytes`; canvases have pictures as they are.
    """
    picture = Image.open(io.BytesIO(png_bytes(pixels, size=size))).convert("RGB")
    expected = np.asarray(picture).astype(int)
    start = time.monotonic()
    deadline = start + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(sync_api.Error):  # a picture that was replaced while it was read
            for pixels in shown(page):
                if pixels.shape == expected.shape and abs(pixels - expected).max() <= 1:
                    return time.monotonic() - start
        time.sleep(0.05)
    raise AssertionError(f"no picture of the page is the expected one of {expected.shape}")


def slider(page, label):
    return page.locator(".widget-slider", has_text=label)
