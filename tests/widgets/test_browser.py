"""The widgets in a real browser, in JupyterLab and in our studio: pixels change as Python says.

    pytest -m browser --basetemp artifacts        # screenshots stay in artifacts/

Needs Debian's chromium and `pip install playwright`; skipped without.
"""

import re
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

pytest.importorskip("nbformat")
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="browser tests need playwright: pip install playwright"
)

from maetok_lab.analysis.masks import draw_masks  # noqa: E402
from maetok_lab.evaluation.pixels import psnr  # noqa: E402
from maetok_lab.plots.masks import heat_picture, masked_picture, picture_of  # noqa: E402
from maetok_lab.runs import Run  # noqa: E402
from maetok_lab.widgets.mask_controls import LARGE  # noqa: E402

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[1])
    patch.syspath_prepend(Path(__file__).parent)
    import browser_parts
    from browser_pages import (
        CHROMIUM,
        FLAGS,
        MARKS,
        assert_shows,
        local,
        run_all,
        serving_notebooks,
        slider,
        write_notebook,
    )
    from serving import free_port, serving, wait_until

pytestmark = MARKS
WIDGETS = ("mask_demo", "mask_studio", "latent_map", "sampler_studio")
PAGES = (*WIDGETS, "large_map", "live_training")


@pytest.fixture(scope="module", params=["lab", "studio"])
def site(request, tmp_path_factory):
    """(front end, address of a widget's page by name, folder for screenshots)."""
    folder = tmp_path_factory.mktemp(request.param)
    for name in PAGES:
        write_notebook(folder, name)
    with serving_notebooks(request.param, folder) as address:
        yield request.param, address, folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
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
        width = 1200 if front == "studio" else 1500
        page = browser.new_page(viewport={"width": width, "height": 1100})
        page.set_default_timeout(120_000)
        errors, strange = [], []
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda problem: errors.append(str(problem)))
        page.on("request", lambda it: None if local(it.url) else strange.append(it.url))
        page.goto(address(name))
        if front == "lab":
            run_all(page)
        opened.append((name, page, errors, strange))
        return page

    yield show
    for name, page, errors, strange in opened:
        page.screenshot(path=folder / f"{name}.png")
        if front == "studio":
            # voila's template asks a CDN for an icon font, which fails where there is no network
            strange = [url for url in strange if "cdn.jsdelivr.net/npm/@fortawesome" not in url]
            failed = "Failed to load resource: net::"
            errors = [error for error in errors if not error.startswith(failed)]
        assert not errors
        assert not strange
        page.close()


@torch.inference_mode()
def reconstruct(studio, mask):
    return studio.tokenizer(studio.image[None], mask=mask[None])[0]


def test_mask_studio(open_widget):
    # the same studio in this process: its attributes say what the page must show
    page, studio = open_widget("mask_studio"), browser_parts.mask_studio()
    patch = studio.tokenizer.config.patch_size
    grids = page.locator(".maetok-grid")
    grids.nth(1).wait_for()
    image, masks = (
        studio.image,
        {r: draw_masks(studio.image[None], patch, ratio=r)[0] for r in (0.5, 0.55)},
    )
    assert_shows(page, picture_of(reconstruct(studio, masks[0.5])), LARGE)

    ratio = slider(page, "mask ratio")
    ratio.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    assert_shows(page, picture_of(reconstruct(studio, masks[0.55])), LARGE)
    assert_shows(page, masked_picture(image, masks[0.55], patch), LARGE)

    track = ratio.locator(".noUi-target").bounding_box()
    page.mouse.click(track["x"] + 0.2 * track["width"], track["y"] + track["height"] / 2)
    page.wait_for_function("old => !document.body.innerText.includes(old)", arg="36 of 64 hidden")
    ratio_now = float(ratio.locator(".widget-readout").inner_text())
    assert 0.1 <= ratio_now <= 0.3
    mask = draw_masks(image[None], patch, ratio=ratio_now)[0]
    assert_shows(page, picture_of(reconstruct(studio, mask)), LARGE)

    place = grids.nth(0).bounding_box()
    cell, before = place["width"] / 8, mask[18].item()
    page.mouse.move(place["x"] + 2.5 * cell, place["y"] + 2.5 * cell)
    page.mouse.down()
    for column in (3.5, 4.5):
        page.mouse.move(place["x"] + column * cell, place["y"] + 2.5 * cell, steps=4)
    page.mouse.up()
    mask[18:21] = not before
    assert_shows(page, masked_picture(image, mask, patch), LARGE)
    assert_shows(page, picture_of(reconstruct(studio, mask)), LARGE)

    place = grids.nth(1).bounding_box()
    rows = studio.controls.tokens.rows
    columns = len(studio.footprint) // rows
    # the third token of the second row
    across, down = 2.5 * place["width"] / columns, 1.5 * place["height"] / rows
    page.mouse.click(place["x"] + across, place["y"] + down)
    token = columns + 2
    assert_shows(page, heat_picture(studio.footprint[token].view(8, 8)), LARGE)

    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert_shows(
        page, heat_picture(studio.footprint[token + 1].view(8, 8)), LARGE
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


def test_mask_demo(open_widget):
    # the same studio in this process: its attributes say what the page must show
    page, demo = open_widget("mask_demo"), browser_parts.mask_demo()
    page.locator(".maetok-thumbnails button").nth(3).wait_for()

    def assert_shows_both(mask):
        for name, tokenizer in demo.tokenizers.items():
            with torch.inference_mode():
                rebuilt = tokenizer(demo.image[None], mask=mask[None])
            assert_shows(page, picture_of(rebuilt[0]))
            score = psnr(rebuilt, demo.image[None]).item()
            page.locator(f".maetok-{name} b", has_text=f"{score:.1f} dB").wait_for()
        assert_shows(page, masked_picture(demo.image, mask, 8))

    # first state, the slider by keyboard, another picture, another order, a brush
    assert_shows_both(demo.masks[2])
    share = page.get_by_label("share of the picture that is hidden")
    share.focus()
    page.keyboard.press("ArrowRight")
    assert_shows_both(demo.masks[3])
    page.locator(".maetok-thumbnails button").nth(2).click()
    page.get_by_role("radio", name="block", exact=True).click()
    demo.kind = "block"
    demo.take(demo.pictures[2])
    assert_shows_both(demo.masks[3])
    place = page.locator(".maetok-seen .maetok-stack").bounding_box()
    cell = place["width"] / 8
    page.mouse.move(place["x"] + 0.5 * cell, place["y"] + 0.5 * cell)
    page.mouse.down()
    page.mouse.move(place["x"] + 1.5 * cell, place["y"] + 0.5 * cell, steps=4)
    page.mouse.up()
    mask = demo.masks[3].clone()
    mask[:2] = not mask[0]
    assert_shows_both(mask)
    assert page.get_by_role("radio", name="by hand").get_attribute("aria-checked") == "true"
    page.locator("summary").click()
    page.locator(".maetok-deep figure", has_text="edges (HOG), of the whole picture").wait_for()


def test_latent_map(open_widget):
    # the same studio in this process: its attributes say what the page must show
    page, walk = open_widget("latent_map"), browser_parts.latent_map()
    board = page.locator(".maetok-board")
    board.wait_for()
    assert_shows(page, picture_of(walk.original(0)))
    assert_shows(page, picture_of(walk.decoded(0)))
    places = {}
    for side in "xy":
        places[side] = np.frombuffer(walk.places()[side], np.uint16) / 65535
    # alone at the edge, so that nothing else lies under the pointer
    far = int(((places["x"] - 0.5) ** 2 + (places["y"] - 0.5) ** 2).argmax())
    board.scroll_into_view_if_needed()
    box = board.bounding_box()
    x = box["x"] + places["x"][far] * box["width"]
    y = box["y"] + places["y"][far] * box["height"]
    page.mouse.move(x - 30, y + 30)
    page.mouse.move(x, y, steps=4)
    page.locator(".maetok-card", has_text=f"{far}: ").wait_for()
    page.mouse.click(x, y)
    assert_shows(page, picture_of(walk.decoded(far)))
    walk.click(far)
    for image in walk.between():
        assert_shows(page, picture_of(image))

    page.get_by_role("radio", name="lasso").click()
    corners = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99), (0.01, 0.02)]
    for step, (across, down) in enumerate(corners):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"], steps=8)
        if not step:
            page.mouse.down()
    page.mouse.up()
    count = len(walk.atlas.frame)
    page.get_by_text(f"{count} points in the lasso").wait_for()
    walk.select(range(count))
    assert_shows(page, picture_of(walk.selected_mean()))


def test_sampler_studio(open_widget):
    # the same studio in this process: its attributes say what the page must show
    page, studio = open_widget("sampler_studio"), browser_parts.sampler_studio()
    box = page.get_by_label("class", exact=True)
    box.wait_for()

    def assert_shows_samples():
        for image in studio.sample():
            assert_shows(page, picture_of(image))

    assert_shows_samples()
    box.select_option(label="dog")
    studio.label = 1
    assert_shows_samples()
    slider(page, "guidance scale").locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    now = studio.settings["guidance"]
    studio.settings["guidance"] = type(now)(now.scale + 0.25, now.low, now.high)
    assert_shows_samples()


NAMELESS = """() => [...document.querySelectorAll('input, select, button, [role=slider]')]
  .filter(e => e.offsetParent && !e.closest('.modebar, .jp-Toolbar'))
  .filter(e => !(e.ariaLabel || e.labels?.length || e.innerText || e.title
                 || e.getAttribute('aria-labelledby')
                 || e.closest('.widget-slider')?.querySelector('label')?.innerText))
  .map(e => e.outerHTML)"""


@pytest.mark.parametrize("site", ["studio"], indirect=True)
@pytest.mark.parametrize("name", WIDGETS)
def test_every_control_has_a_name_and_nothing_is_wider_than_1200_px(open_widget, name):
    page = open_widget(name)
    page.locator(".maetok-demo, .maetok-map, .widget-dropdown").first.wait_for()
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 1200


@pytest.mark.parametrize("site", ["studio"], indirect=True)
def test_a_map_of_fifty_thousand_points_is_smooth_under_the_pointer(open_widget, site):
    page = open_widget("large_map")
    page.locator(".maetok-board").wait_for()
    box = page.locator(".maetok-board").bounding_box()
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


def test_make_studio_serves_the_mask_demo_on_one_screen_on_this_machine_only(
    browser, repository, tmp_path
):
    port = free_port()
    with serving(["make", "studio", f"PORT={port}"], tmp_path, cwd=repository) as server:
        server.wait_until_ready()  # its kernel is started before anybody comes
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(120_000)
        start = time.monotonic()
        page.goto(server.address)
        page.locator(".maetok-words", has_text="50 % hidden: the masked tokenizer is").wait_for()
        seconds = time.monotonic() - start
        page.screenshot(path=tmp_path / "studio.png")
        demo = page.locator(".maetok-demo").bounding_box()
        assert demo["y"] + demo["height"] <= 800
        assert demo["x"] + demo["width"] <= 1200
        heard = [place.laddr for place in psutil.net_connections("tcp") if place.status == "LISTEN"]
        assert {address.ip for address in heard if address.port == port} == {"127.0.0.1"}

        # the page ends its kernel itself, long before the idle limit, and a reload gets another
        page.reload()
        page.locator(".maetok-words", has_text="50 % hidden: the masked tokenizer is").wait_for()
        kernels = set(server.kernels())
        page.goto("about:blank")
        assert wait_until(lambda: kernels - set(server.kernels()), seconds=10)
        assert wait_until(lambda: not server.kernels(), seconds=60)
        page.close()
        assert seconds <= 3


# not in a studio, which shows a page when its cells are done
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
