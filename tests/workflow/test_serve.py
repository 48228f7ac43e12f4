"""The studio's server: who may ask, how many kernels there are, and when they end.

Visitors are plain requests and websockets; browsers are in tests/widgets/test_browser.py.
"""

import concurrent.futures
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("voila", reason="a studio's server needs voila: pip install voila")
websocket = pytest.importorskip("websocket")

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[1])
    from serving import Visitor, studio, wait_until

from maetok_lab.__main__ import main  # noqa: E402
from maetok_lab.workflow.serve import StudioServer  # noqa: E402

IDLE = 2  # seconds
LIMIT = 2  # kernels
DEMO = str(Path(__file__).parents[2] / "notebooks" / "mask_demo.ipynb")
SOON = 20  # seconds for what takes one or two; the machine may be busy


def write_notebook(path, *cells):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(book, path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One that says its kernel's process, and serves two visitors."""
    folder = tmp_path_factory.mktemp("studio")
    code = "import os\nprint('process', os.getpid(), 'voila', 'VOILA_PREHEAT' in os.environ)"
    notebook = write_notebook(folder / "small.ipynb", code, "1 / 0")
    words = ("--kernels", str(LIMIT), "--idle", str(IDLE))
    with studio(notebook, folder, *words) as server:
        yield server


@pytest.fixture
def visitor(server):
    visitor = Visitor(server.address)
    yield visitor
    if visitor.kernel_id:
        visitor.leave()


def enter(visitor):
    """Ask until there is a place, and connect."""
    wait_until(lambda: visitor.page()[0] == 200, seconds=SOON)
    visitor.connect()


def all_ended(server):
    return wait_until(lambda: not server.kernels(), seconds=SOON)


def test_the_first_visitor_gets_the_kernel_that_waited(server, visitor):
    (kernel,) = wait_until(server.kernels, seconds=SOON)
    # nobody was here: it waits longer than any that was left
    time.sleep(2 * IDLE)
    assert server.kernels() == [kernel]
    status, headers, text = visitor.page()
    assert status == 200
    assert f"process {kernel} voila True" in text
    assert "ZeroDivisionError" in text  # what is wrong with a notebook is shown
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "same-origin"  # the address holds the token


# Who may ask --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=guess", "/voila/static/main.js", "/x"])
def test_without_the_token_there_is_one_line_and_no_kernel(server, path):
    before = server.kernels()
    status, _, text = Visitor(server.address).ask(path)
    assert status == 403
    assert len(text.splitlines()) == 1
    assert "?token=..., that was printed where it was started" in text
    time.sleep(0.5)
    assert set(server.kernels()) <= set(before)


# a path that does not exist is answered with 404 to those who may ask, and starts nothing
CASES = [
    (404, {}),
    (404, {"Host": "localhost:8866"}),
    (404, {"Host": "[::1]:8866"}),
    (403, {"Host": "evil"}),
    (403, {"Host": "evil:8866"}),
    (403, {"Host": "127.0.0.1.evil.com"}),
    (403, {"Host": "node7.cluster"}),  # not its --host
    (403, {"Origin": "http://evil"}),
    (403, {"Origin": "null"}),
    (404, {"Sec_Fetch_Site": "none"}),
    (404, {"Sec_Fetch_Site": "same-origin"}),
    # another port of this machine, such as another user's server
    (403, {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Dest": "image"}),
    (403, {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "image"}),
    (403, {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "iframe"}),
]


@pytest.mark.parametrize(("status", "headers"), CASES)
def test_names_and_sites_that_are_not_ours_are_refused(server, status, headers):
    visitor = Visitor(server.address)
    assert visitor.ask(f"/x?{visitor.address.query}", **headers)[0] == status
    # and the same with the cookie alone
    visitor.ask(f"/x?{visitor.address.query}")
    assert visitor.cookies
    assert visitor.ask("/x", **headers)[0] == status


def test_another_site_can_open_the_page_only_where_it_knows_the_whole_address(server):
    visitor = Visitor(server.address)
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"}
    assert visitor.ask(f"/x?{visitor.address.query}", **link)[0] == 404
    assert visitor.cookies
    assert visitor.ask("/x", **link)[0] == 403


def test_scripts_of_other_sites_never_have_the_cookie(server):
    visitor = Visitor(server.address)
    _, headers, _ = visitor.ask(f"/x?{visitor.address.query}")
    (line,) = [it for it in headers.get_all("Set-Cookie") if it.startswith("maetok-studio")]
    assert "HttpOnly" in line
    assert "SameSite=Strict" in line


def test_websockets_of_other_origins_and_without_the_cookie_are_refused(server, visitor):
    wait_until(lambda: visitor.page()[0] == 200, seconds=SOON)
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        visitor.connect(origin="http://evil")
    stranger = Visitor(server.address)
    stranger.kernel_id = visitor.kernel_id
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        stranger.connect()
    visitor.connect()
    assert visitor.socket.connected


def test_a_studio_answers_to_the_host_that_it_was_given():
    assert "node7.cluster" in StudioServer(1, 1, ip="Node7.cluster").names


# When kernels end ---------------------------------------------------------------------------------


def test_a_page_that_is_left_ends_its_kernel(server, visitor):
    enter(visitor)
    visitor.cookies["_xsrf"], mark = "", visitor.cookies["_xsrf"]
    assert visitor.leave() == 403
    visitor.cookies["_xsrf"] = mark
    assert visitor.leave() == 204
    assert visitor.ask(f"/api/kernels/{visitor.kernel_id}")[0] == 404
    assert all_ended(server)  # and the one that waited for the next


def test_a_connected_visitor_stays_and_one_that_vanished_does_not(server, visitor):
    enter(visitor)
    time.sleep(3 * IDLE)
    assert visitor.ask(f"/api/kernels/{visitor.kernel_id}")[0] == 200
    visitor.vanish()
    assert all_ended(server)


def test_a_page_that_never_connects_does_not_keep_its_kernel(server, visitor):
    assert wait_until(lambda: visitor.page()[0] == 200, seconds=SOON)
    time.sleep(1.5 * IDLE)  # a slow browser may still connect
    assert visitor.ask(f"/api/kernels/{visitor.kernel_id}")[0] == 200
    assert all_ended(server)
    # and who comes after all have ended is served
    assert wait_until(lambda: visitor.page()[0] == 200, seconds=SOON)


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory):
    """One whose cell takes far longer than kernels may be idle, in silence."""
    folder = tmp_path_factory.mktemp("slow")
    notebook = write_notebook(folder / "slow.ipynb", "import time\ntime.sleep(8)\nprint('awake')")
    with studio(notebook, folder, "--kernels", "1", "--idle", str(IDLE)) as server:
        yield server


def test_a_page_that_is_being_made_keeps_its_kernel(slow_server):
    status, _, text = Visitor(slow_server.address).page()
    assert status == 200
    assert "awake" in text
    assert all_ended(slow_server)


def test_who_leaves_before_the_page_is_whole_ends_its_kernel_at_once(slow_server):
    visitor = Visitor(slow_server.address)
    address = f"{visitor.address.path}?{visitor.address.query}"
    status = 503
    while status == 503:
        with contextlib.closing(http.client.HTTPConnection(visitor.address.netloc)) as browser:
            browser.request("GET", address)
            answer = browser.getresponse()
            status = answer.status
            assert answer.read(100)
            kernels = slow_server.kernels()
    assert kernels
    started = time.monotonic()
    assert wait_until(lambda: not slow_server.kernels(), seconds=7)
    assert time.monotonic() - started < 7
    assert "Traceback" not in slow_server.log.read_text()


# How many there are -------------------------------------------------------------------------------


def test_more_visitors_than_places_wait_and_come_in_later(server):
    visitors = [Visitor(server.address) for _ in range(6)]
    most = 0
    with concurrent.futures.ThreadPoolExecutor(len(visitors)) as pool:
        answers = [pool.submit(visitor.page) for visitor in visitors]
        while not all(answer.done() for answer in answers):
            most = max(most, len(server.kernels()))
    inside = [visitor for visitor in visitors if visitor.kernel_id]
    waiting = [visitor for visitor in visitors if not visitor.kernel_id]
    for visitor in inside:
        visitor.connect()
    while len(inside) < LIMIT:
        inside.append(waiting.pop())
        enter(inside[-1])
    assert most <= LIMIT
    assert len(server.kernels()) == LIMIT

    # who waits is told so at once, and comes in when somebody leaves
    started = time.monotonic()
    status, headers, text = waiting[0].page()
    assert time.monotonic() - started < 2
    assert status == 503
    assert int(headers["Retry-After"]) <= 5
    assert f"Visitors here or coming in: {LIMIT}." in text
    assert 'http-equiv="refresh"' in text
    assert inside[0].leave() == 204
    assert wait_until(lambda: waiting[0].page()[0] == 200, seconds=SOON)
    assert len(server.kernels()) <= LIMIT
    for visitor in (inside[1], waiting[0]):
        visitor.leave()
    assert all_ended(server)


# The end of the server, and its beginning ---------------------------------------------------------


def assert_all_ended(server, kernels):
    for kernel in kernels:
        with pytest.raises(ProcessLookupError):
            os.kill(kernel, 0)
    assert list((server.log.parent / "temporary").iterdir()) == []
    assert "Traceback" not in server.log.read_text()


def test_an_interrupt_ends_the_server_and_all_kernels_and_leaves_no_file(tmp_path):
    notebook = write_notebook(tmp_path / "small.ipynb", "1")
    with studio(notebook, tmp_path) as server:
        visitor = Visitor(server.address)
        visitor.page()
        visitor.connect()
        assert wait_until(lambda: len(server.kernels()) == 2, seconds=SOON)
        kernels = server.kernels()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(SOON) == 0
    assert_all_ended(server, kernels)


def test_a_taken_port_is_replaced_and_an_early_end_is_a_whole_one(tmp_path):
    notebook = write_notebook(tmp_path / "small.ipynb", "1")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with studio(notebook, tmp_path, "--port", str(port), "--kernels", "3") as server:
            assert Visitor(server.address).address.port != port
            kernels = wait_until(server.kernels, seconds=SOON)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(SOON) == 0
    assert "at most 3 visitors at once (about 2.2 GB)" in server.log.read_text()
    assert_all_ended(server, kernels)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.ipynb"], "no notebook nowhere.ipynb"),
        ([__file__], f"{__file__} is not a notebook (nbformat 4): "),
        ([DEMO, "--kernels", "0"], "kernels and idle must be over 0, not 0 and 20"),
        ([DEMO, "--port", "70000"], "a port is a number from 1 to 65535, not 70000"),
    ],
)
def test_what_cannot_be_served_is_one_line(capsys, words, message):
    assert main(["studio", *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}")
    assert len(printed.splitlines()) == 1


HOLDER = """
import sys, time, websocket
websocket.create_connection(sys.argv[1], cookie=sys.argv[2])
print("connected", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_browser_that_no_longer_answers_is_gone_within_a_minute(server, visitor):
    assert wait_until(lambda: visitor.page()[0] == 200, seconds=SOON)
    address = f"ws://{visitor.address.netloc}/api/kernels/{visitor.kernel_id}/channels"
    cookies = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
    words = [sys.executable, "-c", HOLDER, address, cookies]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as browser:
        assert browser.stdout.readline() == "connected\n"
        browser.send_signal(signal.SIGSTOP)
        try:
            assert wait_until(lambda: not server.kernels(), seconds=60)
        finally:
            browser.kill()
