"""A studio's server as users start it, and visitors of its page."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
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
        self.address = wait_until(self._printed, seconds=300)  # `make` may install first
        assert self.address, log.read_text()

    def _printed(self):
        address = re.search(r"http://\S+", self.log.read_text())
        assert address or self.process.poll() is None, self.log.read_text()
        return address and address.group()

    def kernels(self):
        """Ids of the kernels' processes."""
        ids = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ipykernel_launcher" in child.cmdline():
                    ids.append(child.pid)
        return ids

    def wait_until_ready(self):
        """Until the kernel that waits for a visitor has run its notebook, and computes no more."""
        (kernel,) = wait_until(self.kernels, seconds=60)
        process = psutil.Process(kernel)
        spent = -1.0
        while process.cpu_times().user - spent > 0.05 or spent < 1:
            spent = process.cpu_times().user
            time.sleep(3)


@contextlib.contextmanager
def serving(command, folder, *, path=(), cwd=None):
    """A studio's server until it is interrupted as by ^C.

    Its log and its temporary files are in `folder`; kernels import from `path`.
    """
    places = [*map(str, path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    log = folder / "server.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            cwd=cwd,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "TMPDIR": str(temporary)},
        )
    try:
        yield Server(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.wait(60)


def studio(notebook, folder, *words, path=()):
    """`serving` of a notebook at a free port, unless the words name one."""
    if "--port" not in words:
        words = [*words, "--port", str(free_port())]
    command = [sys.executable, "-m", "maetok_lab", "studio", str(notebook), *words]
    return serving(command, folder, path=path)


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
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        # answers pings, as browsers do
        with contextlib.suppress(OSError, websocket.WebSocketException):
            while True:
                self.socket.recv()

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
