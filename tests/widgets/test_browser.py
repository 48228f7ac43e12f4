"""The widgets in a real browser, in JupyterLab and in voila: pixels change as Python says.

    pytest -m browser --basetemp artifacts        # screenshots stay in artifacts/

Needs Debian's chromium and `pip install playwright`; skipped without.
"""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

pytest.importorskip("nbformat")
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="browser tests need playwright: pip install playwright"
)

from maetok_lab.analysis.masks import draw_masks  # noqa: E402
from maetok_lab.pictures import image_grid  # noqa: E402
from maetok_lab.plots.masks import heat_picture, masked_picture, picture_of  # noqa: E402
from maetok_lab.runs import Run  # noqa: E402
from maetok_lab.widgets.mask_studio import LARGE, SMALL  # noqa: E402
from maetok_lab.widgets.sampler_studio import SIDE  # noqa: E402

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parent)
    import browser_parts
    from browser_pages import (
        assert_shows,
        free_port,
        local,
        serving,
        slider,
        wait_for,
        write_notebook,
    )

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = "--no-sandbox --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
# the map is drawn by WebGL, here in software
FLAGS += " --use-angle=swiftshader --enable-unsafe-swiftshader"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="browser tests need chromium: apt install chromium"
    ),
]
WIDGETS = ("mask_studio", "latent_map", "sampler_studio")
PAGES = (*WIDGETS, "large_map", "live_training")


@pytest.fixture(scope="module")
def studios():
    """The same studios in this process: their attributes say what the page must show."""
    return {name: getattr(browser_parts, name)() for name in WIDGETS}


@pytest.fixture(scope="module", params=["lab", "voila"])
def site(request, tmp_path_factory):
    """(front end, address of a widget's page by name, folder for screenshots)."""
    folder, port = tmp_path_factory.mktemp(request.param), free_port()
    for name in PAGES:
        write_notebook(folder, name)
    if request.param == "lab":
        command = [
            "jupyter",
            "lab",
            "--allow-root",
            "--no-browser",
            "--ServerApp.ip=127.0.0.1",
            f"--port={port}",
            "--IdentityProvider.token=t",
            f"--ServerApp.root_dir={folder}",
            "--LabApp.news_url=",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]
        path, pages = (
            "/lab?token=t",
            "/lab/tree/{}.ipynb?token=t&reset",
        )  # no tabs of an earlier page
    else:
        command = [
            "voila",
            "--no-browser",
            "--Voila.ip=127.0.0.1",
            f"--port={port}",
            f"--Voila.root_dir={folder}",
        ]
        path, pages = "/", "/voila/render/{}.ipynb"
    with serving(command, folder, port, path) as address:
        yield request.param, lambda name: address + pages.format(name), folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.fixture
def open_widget(site, browser):
    """`open_widget(name)`: a page that shows it; closed with a screenshot.

    Its console must hold no error, and nothing may be requested from other machines.
    """
    front, address, folder = site
    opened = []

    def show(name):
        page = browser.new_page(
            viewport={"width": 1200 if front == "voila" else 1500, "height": 1100}
        )
        page.set_default_timeout(120_000)
        errors, strange = [], []
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda problem: errors.append(str(problem)))
        page.on("request", lambda it: None if local(it.url) else strange.append(it.url))
        page.goto(address(name))
        if front == "lab":
            page.wait_for_selector(".jp-Notebook")
            page.wait_for_function(
                "() => document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]')"
            )
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Run All Cells", exact=True).click()
        opened.append((name, page, errors, strange))
        return page

    yield show
    for name, page, errors, strange in opened:
        page.screenshot(path=folder / f"{name}.png")
        if (
            front == "voila"
        ):  # its template asks a CDN for an icon font, which fails where there is no network
            strange = [url for url in strange if "cdn.jsdelivr.net/npm/@fortawesome" not in url]
            errors = [
                error for error in errors if not error.startswith("Failed to load resource: net::")
            ]
        assert not errors
        assert not strange
        page.close()


@torch.inference_mode()
def reconstruct(studio, mask):
    return studio.tokenizer(studio.image[None], mask=mask[None])[0]


def test_mask_studio(open_widget, studios):
    page, studio = open_widget("mask_studio"), studios["mask_studio"]
    patch = studio.tokenizer.config.patch_size
    grids = page.locator(".maetok-grid")
    grids.nth(1).wait_for()
    image, masks = (
        studio.image,
        {r: draw_masks(studio.image[None], patch, ratio=r)[0] for r in (0.5, 0.55)},
    )
    assert_shows(page, picture_of(reconstruct(studio, masks[0.5])), SMALL)

    ratio = slider(page, "mask ratio")
    ratio.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    assert_shows(page, picture_of(reconstruct(studio, masks[0.55])), SMALL)
    assert_shows(page, masked_picture(image, masks[0.55], patch), LARGE)

    track = ratio.locator(".noUi-target").bounding_box()
    page.mouse.click(track["x"] + 0.2 * track["width"], track["y"] + track["height"] / 2)
    page.wait_for_function(
        "old => !document.body.innerText.includes(old)", arg="36 of 64 patches hidden"
    )
    ratio_now = float(ratio.locator(".widget-readout").inner_text())
    assert 0.1 <= ratio_now <= 0.3
    mask = draw_masks(image[None], patch, ratio=ratio_now)[0]
    assert_shows(page, picture_of(reconstruct(studio, mask)), SMALL)

    place = grids.nth(0).bounding_box()
    cell, before = place["width"] / 8, mask[18].item()
    page.mouse.move(place["x"] + 2.5 * cell, place["y"] + 2.5 * cell)
    page.mouse.down()
    for column in (3.5, 4.5):
        page.mouse.move(place["x"] + column * cell, place["y"] + 2.5 * cell, steps=4)
    page.mouse.up()
    mask[18:21] = not before
    assert_shows(page, masked_picture(image, mask, patch), LARGE)
    assert_shows(page, picture_of(reconstruct(studio, mask)), SMALL)

    place = grids.nth(1).bounding_box()
    rows = studio.controls.tokens.rows
    columns = len(studio.footprint) // rows
    # the third token of the second row
    across, down = 2.5 * place["width"] / columns, 1.5 * place["height"] / rows
    page.mouse.click(place["x"] + across, place["y"] + down)
    token = columns + 2
    assert_shows(page, heat_picture(studio.footprint[token].view(8, 8)), SMALL)

    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert_shows(
        page, heat_picture(studio.footprint[token + 1].view(8, 8)), SMALL
    )  # the cursor of the keys follows the click


def test_an_upload_that_is_no_picture_or_too_large_is_told_in_the_page(open_widget, tmp_path):
    page = open_widget("mask_studio")
    page.locator(".maetok-grid").nth(1).wait_for()
    for name, content, words in (
        ("no.png", b"hello", "is no picture"),
        ("huge.png", b"0" * 15_000_000, "has 15 MB"),
    ):
        (tmp_path / name).write_bytes(content)
        page.locator("input[type=file]").set_input_files(tmp_path / name)
        page.get_by_text(words).wait_for()


def test_latent_map(open_widget, studios):
    page, walk = open_widget("latent_map"), studios["latent_map"]
    page.locator(".js-plotly-plot .nsewdrag").first.wait_for()
    places = """index => {
      const plot = document.querySelector('.js-plotly-plot'), box = plot.getBoundingClientRect();
      const layout = plot._fullLayout, data = plot._fullData[0];
      return [box.x + layout.xaxis._offset + layout.xaxis.d2p(data.x[index]),
              box.y + layout.yaxis._offset + layout.yaxis.d2p(data.y[index])]; }"""
    frame = walk.atlas.frame
    far = int(
        (frame["x"] ** 2 + frame["y"] ** 2).idxmax()
    )  # alone at the edge, so that nothing else lies under the pointer
    x, y = page.evaluate(places, far)
    page.mouse.move(x - 30, y + 30)
    page.mouse.move(x, y, steps=4)
    assert_shows(page, picture_of(walk.original(far)), 128)
    page.mouse.down()
    page.mouse.up()
    assert_shows(page, picture_of(walk.decoded(far)), 128)

    drag = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    corners = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99), (0.01, 0.02)]
    for step, (across, down) in enumerate(corners):
        page.mouse.move(
            drag["x"] + across * drag["width"], drag["y"] + down * drag["height"], steps=8
        )
        if not step:
            page.mouse.down()
    page.mouse.up()
    page.get_by_text(f"{len(frame)} points").wait_for()
    walk.select(list(range(len(frame))))
    assert_shows(page, picture_of(walk.selected_mean()), 128)


def test_sampler_studio(open_widget, studios):
    page, studio = open_widget("sampler_studio"), studios["sampler_studio"]
    box = page.get_by_label("class", exact=True)
    box.wait_for()

    def grid():
        return image_grid(studio.sample())

    assert_shows(page, grid(), SIDE)
    box.select_option(label="dog")
    studio.label = 1
    assert_shows(page, grid(), SIDE)
    slider(page, "guidance scale").locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    now = studio.settings["guidance"]
    studio.settings["guidance"] = type(now)(now.scale + 0.25, now.low, now.high)
    assert_shows(page, grid(), SIDE)


NAMELESS = """() => [...document.querySelectorAll('input, select, button, [role=slider]')]
  .filter(e => e.offsetParent && !e.closest('.modebar, .jp-Toolbar'))
  .filter(e => !(e.ariaLabel || e.labels?.length || e.innerText || e.title
                 || e.getAttribute('aria-labelledby')
                 || e.closest('.widget-slider')?.querySelector('label')?.innerText))
  .map(e => e.outerHTML)"""


@pytest.mark.parametrize("site", ["voila"], indirect=True)
@pytest.mark.parametrize("name", WIDGETS)
def test_every_control_has_a_name_and_nothing_is_wider_than_1200_px(open_widget, name):
    page = open_widget(name)
    page.locator(".widget-dropdown").first.wait_for()
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 1200


@pytest.mark.parametrize("site", ["voila"], indirect=True)
def test_a_map_of_fifty_thousand_points_is_smooth_under_the_pointer(open_widget, site):
    page = open_widget("large_map")
    page.locator(".js-plotly-plot .nsewdrag").first.wait_for()
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    page.evaluate("""() => { window.frames_ = []; let last = performance.now();
      const tick = now => {
        window.frames_.push(now - last); last = now; requestAnimationFrame(tick); };
      requestAnimationFrame(tick); }""")
    for step in range(60):
        page.mouse.move(
            box["x"] + box["width"] * (0.2 + 0.01 * step), box["y"] + box["height"] * 0.5
        )
    spent = sorted(page.evaluate("() => window.frames_"))
    median, late = spent[len(spent) // 2], spent[int(0.95 * len(spent))]
    (site[2] / "frames.txt").write_text(
        f"{len(spent)} frames, median {median:.0f} ms, 95th percentile {late:.0f} ms\n"
    )
    assert median < 100


def test_make_studio_serves_the_mask_studio_on_this_machine_only(browser, repository, tmp_path):
    port = free_port()
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(
            ["make", "studio", f"PORT={port}"],
            cwd=repository,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for(server, f"http://127.0.0.1:{port}/", seconds=300)
        page = browser.new_page(viewport={"width": 1200, "height": 1100})
        page.set_default_timeout(120_000)
        page.goto(f"http://127.0.0.1:{port}/")
        page.locator(".maetok-grid").nth(1).wait_for()
        page.get_by_text("of 64 patches hidden").wait_for()
        page.screenshot(path=tmp_path / "studio.png")
        page.close()
        heard = [place.laddr for place in psutil.net_connections("tcp") if place.status == "LISTEN"]
        assert {address.ip for address in heard if address.port == port} == {"127.0.0.1"}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


# not in voila, which shows a page when its cells are done
@pytest.mark.parametrize("site", ["lab"], indirect=True)
def test_the_stop_button_ends_a_training_with_a_checkpoint_and_the_cell_goes_on(open_widget, site):
    page = open_widget("live_training")
    stop = page.locator(".widget-button", has_text="stop")
    words = page.locator(".jp-OutputArea-output")
    stop.wait_for()
    page.wait_for_function("() => /step [1-9][0-9]+ of 100000/.test(document.body.innerText)")
    stop.click()
    line = words.filter(has_text="stopped at step")
    line.wait_for()
    step = int(re.search(r"stopped at step (\d+)", line.inner_text()).group(1))
    run = Run(site[2] / "runs" / "live")
    assert run.checkpoint_steps()[-1] == step
    page.keyboard.press("Escape")
    page.locator(".jp-Cell").first.click()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    words.filter(has_text=f"continues at step {step + 1} of 100000").wait_for()
