"""Studios live on a busy machine: a slow page, late modules, both cores taken.

    pytest -m browser tests/widgets/test_never_dead.py --basetemp artifacts

Every picture must be what Python says, at first and after every later move. anywidget gives up on
a model whose script took over two seconds, and drops its updates from then on: see panel.js.
"""

import base64
import contextlib
import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nbformat")
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="browser tests need playwright: pip install playwright"
)

from nbformat import v4  # noqa: E402

from maetok_lab.analysis.masks import draw_masks  # noqa: E402
from maetok_lab.plots.masks import masked_picture, picture_of  # noqa: E402
from maetok_lab.widgets.mask_controls import LARGE  # noqa: E402
from maetok_lab.workflow.page import write_html  # noqa: E402

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent)
    import browser_parts
    from browser_pages import (
        CHROMIUM,
        FLAGS,
        MARKS,
        assert_shows,
        run_all,
        serving_notebooks,
        slider,
        write_notebook,
    )

pytestmark = [*MARKS, pytest.mark.timeout(1800)]
WIDGETS = ("mask_demo", "mask_studio", "latent_map")
OPENINGS = 2  # of each page
# how many times slower the page's processor is, seconds that anywidget's modules are late, and
# whether something else computes on both cores
CONDITIONS = [(1, 0, False), (6, 0, False), (20, 0, False), (1, 5, False), (6, 0, True)]


@pytest.fixture(scope="module")
def studios():
    """The same studios in this process: their attributes say what the page must show."""
    return {name: getattr(browser_parts, name)() for name in WIDGETS}


@pytest.fixture(scope="module", params=["lab", "studio"])
def site(request, tmp_path_factory):
    """(front end, address of the page with all three, folder for what was measured)."""
    folder = tmp_path_factory.mktemp(request.param)
    write_notebook(folder, "together", WIDGETS)
    with serving_notebooks(request.param, folder) as address:
        yield request.param, address("together"), folder


@contextlib.contextmanager
def both_cores_busy(busy):
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * busy)]
    try:
        yield
    finally:
        for other in others:
            other.terminate()
            other.wait()


def late(route, seconds):
    time.sleep(seconds)
    route.continue_()


@torch.inference_mode()
def assert_demo_shows(page, demo, patience):
    """Both reconstructions and the masked picture. -> seconds for all"""
    mask = demo.mask
    seconds = 0
    for tokenizer in demo.tokenizers.values():
        rebuilt = tokenizer(demo.image[None], mask=mask[None])[0]
        seconds += assert_shows(page, picture_of(rebuilt), patience=patience)
    return seconds + assert_shows(page, masked_picture(demo.image, mask, 8), patience=patience)


@torch.inference_mode()
def assert_studio_shows(page, studio, ratio, patience):
    """The reconstruction, and the grid with its own picture. -> seconds for all"""
    mask = draw_masks(studio.image[None], 8, ratio=ratio)
    rebuilt = studio.tokenizer(studio.image[None], mask=mask)[0]
    seconds = assert_shows(page, picture_of(rebuilt), LARGE, patience=patience)
    seen = masked_picture(studio.image, mask[0], 8)
    return seconds + assert_shows(page, seen, LARGE, patience=patience)


def assert_map_shows(page, walk, patience):
    """The point's image and what is decoded. -> seconds for both"""
    images = (walk.original(walk.point), walk.decoded(walk.point))
    return sum(assert_shows(page, picture_of(image), patience=patience) for image in images)


@contextlib.contextmanager
def opened(site, slower, seconds_late):
    """The page, whose processor and modules are slow; a screenshot is kept."""
    front, address, folder = site
    with sync_api.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = chromium.new_page(viewport={"width": 1500, "height": 3200})
        page.set_default_timeout(1000 * patience_for(slower))
        if seconds_late:
            page.route("**/anywidget/**/*.js*", lambda route: late(route, seconds_late))
        session = page.context.new_cdp_session(page)
        session.send("Emulation.setCPUThrottlingRate", {"rate": slower})
        page.goto(address)
        if front == "lab":
            run_all(page)
        try:
            yield page
        finally:
            page.screenshot(path=folder / f"{slower}-{seconds_late}.png")
            chromium.close()


def patience_for(slower):
    return 60 * (1 + slower / 5)


@pytest.mark.parametrize("opening", range(OPENINGS))
@pytest.mark.parametrize(("slower", "seconds_late", "busy"), CONDITIONS)
def test_every_picture_is_pythons(site, studios, slower, seconds_late, busy, opening):
    patience = patience_for(slower)
    demo, studio, walk = (studios[name] for name in WIDGETS)
    demo.kind, demo.step, demo.brushed = "scattered", 2, []
    demo.take(demo.pictures[0])
    walk.point = 0
    with both_cores_busy(busy), opened(site, slower, seconds_late) as page:
        page.locator(".maetok-thumbnails button").nth(3).wait_for()
        times = {"first": assert_demo_shows(page, demo, patience)}
        page.locator(".maetok-grid").nth(1).wait_for()
        times["first"] += assert_studio_shows(page, studio, 0.5, patience)
        page.locator(".maetok-inspector canvas").nth(1).wait_for()
        times["first"] += assert_map_shows(page, walk, patience)

        # each later move, twice: what comes from the kernel must be heard
        for turn, picture in enumerate((1, 2)):
            page.locator(".maetok-thumbnails button").nth(picture).click()
            demo.take(demo.pictures[picture])
            times[f"demo {turn}"] = assert_demo_shows(page, demo, patience)
            slider(page, "mask ratio").locator(".noUi-handle").focus()
            page.keyboard.press("ArrowRight")
            ratio = 0.55 + 0.05 * turn
            times[f"studio {turn}"] = assert_studio_shows(page, studio, ratio, patience)
            field = page.get_by_label("number of a point")
            field.fill(str(7 + turn))
            field.press("Enter")
            walk.point = 7 + turn
            times[f"map {turn}"] = assert_map_shows(page, walk, patience)

    words = ", ".join(f"{name} {seconds:.2f}" for name, seconds in times.items())
    with open(site[2] / "seconds.txt", "a") as file:
        file.write(f"{slower} x slower, {seconds_late} s late, busy {busy}: {words}\n")


def test_a_page_without_a_kernel_shows_each_state_and_goes_on(studios, tmp_path):
    """Stills in an exported page, opened from a disk: sliders, zoom and hover need no kernel."""
    cells = []
    for name in WIDGETS:
        html = v4.new_output("display_data", {"text/html": studios[name].still()})
        cells.append(v4.new_code_cell("show", outputs=[html]))
    page_file = tmp_path / "exported" / "notebook.html"
    write_html(v4.new_notebook(cells=cells), page_file, folder=tmp_path)
    demo, _, walk = (studios[name] for name in WIDGETS)
    with sync_api.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(30_000)
        problems = []
        page.on("pageerror", lambda problem: problems.append(str(problem)))
        page.goto(page_file.as_uri())

        # the demo's slider
        share = page.get_by_label("share of the picture that is hidden")
        share.fill("3")
        page.locator(".maetok-words", has_text="75 % hidden").wait_for()
        sheet = np.asarray(Image.open(io.BytesIO(demo.view.study["sheet"])).convert("RGB"))
        drawn = page.evaluate(CANVAS, ".maetok-masked canvas")
        assert np.abs(as_pixels(drawn).astype(int) - sheet[:64, 192:256]).max() <= 1
        assert page.get_by_role("radio", name="block").is_disabled()
        page.get_by_text("no kernel: this is the stored state").first.wait_for()

        # the studio's twin, and the map's hover
        pictures = page.locator(".maetok-still img")
        pictures.first.scroll_into_view_if_needed()
        assert pictures.first.bounding_box()["height"] > 200
        page.locator(".maetok-still").nth(2).scroll_into_view_if_needed()
        board = page.locator(".maetok-board")
        board.scroll_into_view_if_needed()
        box = board.bounding_box()
        x = numbers(walk.view.places["x"])
        y = numbers(walk.view.places["y"])
        far = int(((x - 0.5) ** 2 + (y - 0.5) ** 2).argmax())
        page.mouse.move(box["x"] + x[far] * box["width"], box["y"] + y[far] * box["height"])
        page.locator(".maetok-card", has_text=f"{far}: ").wait_for()
        page.screenshot(path=tmp_path / "exported.png")
        assert not problems
        chromium.close()


CANVAS = "selector => document.querySelector(selector).toDataURL('image/png').split(',')[1]"


def as_pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def numbers(content):
    return np.frombuffer(content, np.uint16) / 65535
