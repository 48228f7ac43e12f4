"""Pictures as bytes, and who is looking."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from maetok_lab.widgets import front
from maetok_lab.widgets.front import Studio, is_live, png_bytes


def test_a_picture_is_scaled_by_whole_pixels(pixels):
    picture = np.random.default_rng(0).integers(0, 255, (8, 6, 3), np.uint8)
    assert np.array_equal(pixels(png_bytes(picture, size=32)), picture.repeat(4, 0).repeat(4, 1))
    large = np.zeros((300, 200, 3), np.uint8)
    assert pixels(png_bytes(large, size=100)).shape == large.shape, "never made smaller"


@pytest.mark.parametrize(
    ("stdin", "server", "live"), [(True, "", True), (False, "", False), (False, "voila/0.5", True)]
)
def test_front_ends_that_take_input_and_voila_are_live(monkeypatch, stdin, server, live):
    IPython = pytest.importorskip("IPython")
    kernel = SimpleNamespace(get_parent=lambda channel: {"content": {"allow_stdin": stdin}})
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setattr(front, "_started_by_voila", lambda: server.startswith("voila"))
    assert is_live() == live


def test_a_script_is_not_live():
    assert not is_live()


@pytest.mark.parametrize(
    ("environ", "voila"),
    [({"VOILA_PREHEAT": "True"}, True), ({"VOILA_PREHEAT": "False"}, True), ({}, False)],
)
def test_a_kernel_that_voila_started_carries_its_mark(monkeypatch, environ, voila):
    monkeypatch.setattr(front.psutil, "Process", lambda: SimpleNamespace(environ=lambda: environ))
    assert front._started_by_voila.__wrapped__() == voila


def test_a_studio_shows_itself_where_it_can_be_touched_and_its_twin_elsewhere(monkeypatch):
    display = pytest.importorskip("IPython.display")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    displayed = []
    monkeypatch.setattr(display, "display", lambda shown, **_: displayed.append(shown))
    pyplot.close("all")

    class Two(Studio):
        view = "view"

        def twin(self):
            return pyplot.figure()

    monkeypatch.setattr(front, "is_live", lambda: True)
    Two()._ipython_display_()
    view, still = displayed
    assert view == "view"
    assert "class='maetok-still'" in still.data
    displayed.clear()
    monkeypatch.setattr(front, "is_live", lambda: False)
    Two()._ipython_display_()
    (twin,) = displayed
    assert twin.data.startswith(b"\x89PNG")
    assert not pyplot.get_fignums(), "displayed once, not again by the notebook"


def test_the_stored_state_is_taken_anew_once_nothing_moves(monkeypatch):
    pytest.importorskip("IPython")
    monkeypatch.setattr(front, "QUIET", 0.02)
    stored = []

    class Moving(Studio):
        state = 0

        def still(self):
            return str(self.state)

    studio = Moving()
    studio._stored = SimpleNamespace(update=lambda html: stored.append(html.data))

    async def moves():
        for studio.state in (1, 2, 3):
            studio.moved()
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)

    asyncio.run(moves())
    assert stored == ["3"]
