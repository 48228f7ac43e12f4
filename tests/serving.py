"""A studio's server as users start it, and visitors of its page."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import websocket

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, *, seconds):
    """What `condition()` says once it is true, or at the end."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return answer


class Server:
    """The process, the `address` that it printed, its `log`, and its kernels."""

    def __init__(self, process, log):
        self.process = process
        self.log = log
        self.address = wait_until(self._printed, seconds=120)
        assert self.address, log.read_text()

    def _printed(self):
        address = re.search(r"http://\S+", self.log.read_text())
        return address and address.group()

    def kernels(self):
        """Ids of the kernels' processes."""
        ids = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ipykernel_launcher" in child.cmdline():
                    ids.append(child.pid)
        return ids


@contextlib.contextmanager
def studio(notebook, folder, *words, command=None):
    """`python -m maetok_lab studio NOTEBOOK WORDS`, until it is interrupted as by ^C.

    Its log and its temporary files are in `folder`.
    """
    command = command or [sys.executable, "-m", "maetok_lab", "studio", str(notebook)]
    if "--port" not in words:
        words = [*words, "--port", str(free_port())]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    log = folder / "server.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*command, *words],
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(temporary)},
        )
    try:
        yield Server(process, log)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


class Visitor:
    """A browser: it keeps cookies, asks for the page, and connects to its kernel."""

    def __init__(self, address):
        self.address = urlsplit(address)
        self.cookies = {}
        self.kernel_id = None
        self.socket = None

    def ask(self, path, *, method="GET", body=None, timeout=60, **headers):
        """-> (status, headers, text)"""
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={it}" for name, it in self.cookies.items())
        connection = http.client.HTTPConnection(self.address.netloc, timeout=timeout)
        with contextlib.closing(connection):
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        for line in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value
        return answer.status, answer.headers, text

    def page(self, **headers):
        """Ask for the printed address. -> (status, headers, text)"""
        answer = self.ask(f"{self.address.path}?{self.address.query}", **headers)
        kernel = re.search(r'"kernelId": "([^"]+)"', answer[2])
        self.kernel_id = kernel and kernel.group(1)
        return answer

    def connect(self, origin=None):
        """Open the page's websocket, as its script does."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        self.socket = websocket.create_connection(
            f"ws://{self.address.netloc}/api/kernels/{self.kernel_id}/channels?session_id=x",
            origin=origin or f"http://{self.address.netloc}",
            cookie=cookies,
            timeout=60,
        )

    def leave(self):
        """What the page sends when it is closed. -> status"""
        mark = {"_xsrf": self.cookies.get("_xsrf", "")}
        return self.ask(
            f"/voila/api/shutdown/{self.kernel_id}",
            method="POST",
            body="&".join(f"{name}={value}" for name, value in mark.items()),
            Content_Type="application/x-www-form-urlencoded",
        )[0]

    def vanish(self):
        """Break the connection without a word."""
        self.socket.shutdown()
