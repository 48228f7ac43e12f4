"""`python -m maetok_lab studio NOTEBOOK`: a notebook as a web page, for a few visitors at a time.

voila runs the notebook and draws the page; jupyter_server talks to the kernels and ends idle ones.
Ours is who may ask, how many kernels there are, and when they end. Import this file where it is
used: it imports both.

- Each visitor has a kernel, of which at most `kernels` live at once; who finds no place waits at a
  page that asks again. One kernel is started before anybody comes, and the next while somebody is
  there.
- A kernel ends when its page is left, and `idle` seconds after the last connection to it ended; a
  page counts as one while it is being made, and then has twice as long to connect. The waiting
  kernel ends `idle` seconds after the last visitor.
- Every request needs the printed token, or the cookie that came with the first page; the name of
  this machine; and to come from this page or from a person, not from another web site.
"""

import asyncio
import contextlib
import datetime
import logging
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado import ioloop, web
from voila.app import Voila
from voila.tornado.handler import TornadoVoilaHandler
from voila.voila_kernel_manager import voila_kernel_manager_factory

from maetok_lab.device import free_memory, usable_cores
from maetok_lab.workflow.execute import KERNEL_ENVIRONMENT
from maetok_lab.workflow.parameters import read_cells

KERNEL_BYTES = 0.75e9  # of a kernel with the mask demo, after some moves
KERNELS_A_CORE = 4  # a visitor mostly looks
CHECK_SECONDS = 1  # between two looks for what is idle
RETRY_SECONDS = 3  # until a visitor who waits asks again
PAGE_SECONDS = 30  # for which a page that is being made lets others wait
REST_SECONDS = 5  # between a page and the start of the next kernel: browsers draw meanwhile
HTTP = {  # settings of tornado and jupyter_server
    # a browser that no longer answers pings has left, though its connection stands
    "ws_ping_interval": 10_000,  # milliseconds
    "ws_ping_timeout": 25_000,
    # the address holds the token, and voila's page asks another site for its icons
    "headers": {"Referrer-Policy": "same-origin"},
    "log_function": lambda handler: None,  # a line each time that somebody waits
}
WAITING = """<!DOCTYPE html>
<meta charset="utf-8"><meta http-equiv="refresh" content="{seconds}"><title>A moment</title>
<body style="font: 16px sans-serif; max-width: 40em; margin: 20vh auto">
<p>There is no place just now. Visitors here or coming in: {visitors}.
<p>You will be let in when a place is free: this page asks again every {seconds} seconds.
"""


def serve(
    notebook: str | Path,
    *,
    port: int = 8866,
    host: str = "127.0.0.1",
    kernels: int | None = None,
    idle: int = 20,
) -> None:
    """Serve the notebook's page until a signal comes, see above; the address is printed.

    `host` is where it listens, and a name that it answers to. Where `port` is taken, it is another.
    Raises FileNotFoundError and ValueError, and OSError for a host that is not this machine.
    """
    read_cells(notebook)
    if kernels is None:
        kernels = default_kernels()
    if kernels < 1 or idle < 1:
        raise ValueError(f"kernels and idle must be over 0, not {kernels} and {idle}")
    if not 0 < port < 2**16:
        raise ValueError(f"a port is a number from 1 to 65535, not {port}")
    # nor a line for each request that makes no sense
    logging.getLogger("tornado").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="maetok-studio-") as folder:
        server = StudioServer(
            kernels,
            idle,
            ip=host,
            port=port,
            connection_dir_root=folder,
            open_browser=False,
            log_level=logging.ERROR,
            tornado_settings=HTTP,
        )
        server.initialize([str(notebook)])
        server.start()


def default_kernels() -> int:
    """How many kernels may live at once: half of the free memory, and four a core at most."""
    memory = free_memory(torch.device("cpu")) or 0
    return max(1, min(int(memory / 2 / KERNEL_BYTES), KERNELS_A_CORE * usable_cores()))


# Who may ask --------------------------------------------------------------------------------------


class Guarded:
    """In front of any handler: refuses with 403 and one line."""

    async def prepare(self) -> None:
        """tornado's hook before each request."""
        reason = self._refusal()
        if reason is None:
            result = super().prepare()
            if result is not None:
                await result
            return
        self.set_status(403)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        web.RequestHandler.finish(self, reason + "\n")  # jupyter_server's would call it JSON

    def _refusal(self) -> str | None:
        request = self.request
        server = self.settings["voila"]
        # a web site may give its own name to this machine's address
        if request.host_name not in server.names:
            return (
                f"This studio answers to the name {server.ip} alone; another one is given by --host"
                " where it is started."
            )

        # the token of the address, or of the cookie
        asked = self.get_query_argument("token", "")
        named = server.is_token(asked)
        if not named and not server.is_token(self.get_cookie(server.cookie, "")):
            return (
                "This studio opens at the whole address, with ?token=..., that was printed where"
                " it was started."
            )

        # browsers say on whose behalf they ask; a link or a typed address opens a whole page
        site = request.headers.get("Sec-Fetch-Site", "none")
        whole_page = request.headers.get("Sec-Fetch-Dest") == "document"
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
            return "This studio does not answer other web sites."
        if site not in ("none", "same-origin") and not (named and whole_page):
            return "This studio does not answer other web sites."
        if named:
            self.set_cookie(server.cookie, asked, httponly=True, samesite="Strict")
        return None


def guarded(handler: type) -> type:
    """The handler, behind `Guarded`."""
    return type(handler.__name__, (Guarded, handler), {})


# Kernels ------------------------------------------------------------------------------------------


class Kernels(voila_kernel_manager_factory(AsyncMappingKernelManager, True, 1)):
    """A kernel for each visitor, and one that waits for the next.

    voila's task of one that is begun, a `sitting`, ends when its kernel is there; its result holds
    `kernel_id`, `renderer` and the `task` that runs the notebook.
    """

    def __init__(self, limit: int, **options: Any):
        super().__init__(**options)
        self.limit = limit  # the most at once
        self.pages: list[float] = []  # when those that are being made were begun
        self._page_ended = 0.0
        self._sittings: list[asyncio.Task] = []
        self._someone: float | None = None  # when a visitor was last here
        self._waiting: asyncio.Task | None = self._begin()

    def visitors(self) -> int:
        """Kernels that are a visitor's."""
        return self._count() - (self._waiting is not None)

    def take(self) -> asyncio.Task | None:
        """A sitting for one more visitor; None where there is no place, or too much begins."""
        # each page takes seconds of two cores: side by side all would be late
        begun = [page for page in self.pages if time.monotonic() - page < PAGE_SECONDS]
        if len(begun) >= max(1, usable_cores() // 2):
            return None
        count = self._count()
        sitting = self._waiting
        self._waiting = None
        if sitting is None and count < self.limit:
            sitting = self._begin()
        return sitting

    @contextlib.contextmanager
    def making_page(self) -> Iterator[None]:
        """While it lasts, one page more is being made."""
        page = time.monotonic()
        self.pages.append(page)
        try:
            yield
        finally:
            self.pages.remove(page)
            self._page_ended = time.monotonic()

    def _count(self) -> int:
        self._sittings = list(filter(self._lives, self._sittings))
        if self._waiting not in self._sittings:
            self._waiting = None
        return len(self._sittings)

    def _lives(self, sitting: asyncio.Task) -> bool:
        if not sitting.done():
            return True
        return sitting.exception() is None and sitting.result()["kernel_id"] in self

    def _begin(self) -> asyncio.Task:
        # voila's pool has one place, which is emptied at once: what waits is ours to count
        self.fill_if_needed(delay=0, notebook_name=self.notebook_path)
        sitting = self._pools[self.notebook_path].pop()
        self._sittings.append(sitting)
        return sitting

    def notify_disconnect(self, kernel_id: str) -> None:
        """jupyter_server's hook for a connection that ended; idle time counts from here."""
        super().notify_disconnect(kernel_id)
        if kernel_id in self:
            self.get_kernel(kernel_id).last_activity = datetime.datetime.now(datetime.UTC)

    def page_sent(self, kernel_id: str) -> None:
        """A page is one connection less; slow browsers have twice the idle time to connect."""
        self.notify_disconnect(kernel_id)
        if kernel_id in self:
            grace = datetime.timedelta(seconds=self.cull_idle_timeout)
            self.get_kernel(kernel_id).last_activity += grace

    async def cull_kernels(self) -> None:
        """jupyter_server's look at each kernel, at all together; then at the one that waits."""
        # ending one takes seconds
        checks = map(self.cull_kernel_if_idle, list(self._kernels))
        await asyncio.gather(*checks, return_exceptions=True)

        # while somebody is here, one waits for the next
        now = time.monotonic()
        rests = not self.pages and now - self._page_ended > REST_SECONDS
        if self._waiting is None and rests and 0 < self._count() < self.limit:
            self._waiting = self._begin()
        if self.pages or any(self._kernel_connections.values()):
            self._someone = now
        elif self._someone is not None and now - self._someone > self.cull_idle_timeout:
            await self._dismiss()

    async def cull_kernel_if_idle(self, kernel_id: str) -> None:
        """jupyter_server's, of all but the one that waits."""
        self._count()
        sitting = self._waiting
        if sitting is None or not sitting.done() or sitting.result()["kernel_id"] != kernel_id:
            await super().cull_kernel_if_idle(kernel_id)

    async def _dismiss(self) -> None:
        sitting = self._waiting
        self._waiting = None
        if sitting is not None:
            await self.shutdown_kernel((await sitting)["kernel_id"], now=True)

    async def close(self) -> None:
        """End all, also those that are only starting."""
        if self._sittings:
            await asyncio.wait(self._sittings, timeout=10)
        await self.shutdown_all(now=True)


# The page -----------------------------------------------------------------------------------------


class Page(JupyterHandler):
    """The notebook's page, sent while its cells run."""

    gone = False  # whether who asked has left

    def on_connection_close(self) -> None:
        """tornado's hook."""
        self.gone = True

    async def get(self) -> None:
        """A kernel and its page, or the one that waits."""
        kernels = self.kernel_manager
        sitting = kernels.take()
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        if sitting is None:
            self.set_status(503)
            self.set_header("Retry-After", str(RETRY_SECONDS))
            self.finish(WAITING.format(visitors=kernels.visitors(), seconds=RETRY_SECONDS))
            return
        self.xsrf_token  # noqa: B018  makes the cookie without which a page cannot end its kernel
        with kernels.making_page():
            content = await sitting
            kernels.notify_connect(content["kernel_id"])
            try:
                await self._send(content["task"], content["renderer"].rendered_cache)
            finally:
                kernels.page_sent(content["kernel_id"])
                if self.gone:  # before the page was whole: nobody can connect to this kernel
                    content["task"].cancel()
                    await kernels.shutdown_kernel(content["kernel_id"], now=True)

    async def _send(self, task: asyncio.Task, parts: list[str]) -> None:
        sent = 0
        while not self.gone:
            ended = task.done()
            if len(parts) > sent:
                self.write("".join(parts[sent:]))
                sent = len(parts)
                self.flush()  # not awaited: who no longer reads would hold a place
            if ended:
                task.result()  # raises what the page could not be made for
                return
            await asyncio.wait([task], timeout=0.1)


# The server ---------------------------------------------------------------------------------------


class StudioServer(Voila):
    """voila for one notebook, with the handlers and kernels above."""

    def __init__(self, kernel_limit: int, idle_seconds: int, **options: Any):
        super().__init__(**options)
        self.kernel_limit = kernel_limit
        self.idle_seconds = idle_seconds
        self.config.VoilaConfiguration.show_tracebacks = True
        # else any user of this machine reads what kernels say
        self.config.MappingKernelManager.transport_encryption = "auto"
        self.secret = secrets.token_urlsafe(24)  # voila's own leaves websockets and files open
        self.names = {"localhost", "127.0.0.1", "[::1]", self.ip.lower(), f"[{self.ip}]"}

    @property
    def cookie(self) -> str:
        """Its name: studios at other ports have others."""
        return f"maetok-studio-{self.port}"

    def is_token(self, word: str) -> bool:
        """Whether it is the printed one; the answer takes equally long whatever it is."""
        return secrets.compare_digest(word.encode(), self.secret.encode())

    def init_settings(self) -> dict[str, Any]:
        """voila's, with our kernels."""
        settings = super().init_settings()
        plain = self.kernel_manager
        self.kernel_manager = settings["kernel_manager"] = Kernels(
            self.kernel_limit,
            parent=self,
            connection_dir=plain.connection_dir,
            kernel_spec_manager=plain.kernel_spec_manager,
            allowed_message_types=plain.allowed_message_types,
            default_env_variables=KERNEL_ENVIRONMENT,
            cull_idle_timeout=self.idle_seconds,
            cull_interval=CHECK_SECONDS,
            cull_busy=True,  # what nobody is connected to computes for nobody
        )
        return settings

    def init_handlers(self) -> list[tuple]:
        """voila's, with our page, all guarded."""
        rules = [rule for rule in super().init_handlers() if rule[1] is not TornadoVoilaHandler]
        rules += [("/", Page), ("/.*", web.ErrorHandler, {"status_code": 404})]
        return [(pattern, guarded(handler), *options) for pattern, handler, *options in rules]

    def listen(self) -> None:
        """voila's, which runs until the loop is stopped."""
        ioloop.IOLoop.current().add_callback(self._announce)
        super().listen()

    def _announce(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        size = self.kernel_limit * KERNEL_BYTES / 1e9
        print(
            f"the studio is at {self.connection_url}?token={self.secret}\n"
            f"at most {self.kernel_limit} visitors at once (about {size:.1f} GB); ^C ends it",
            flush=True,
        )

    def _on_signal(self, number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # kernels need a second or two to end
        self.ioloop.add_callback_from_signal(self._end)

    async def _end(self) -> None:
        await self.kernel_manager.close()
        self.ioloop.stop()
