"""The run browser shows what the chosen runs hold."""

import json
import math
import shutil

import pytest

pytest.importorskip("ipywidgets")
pytest.importorskip("anywidget")

from maetok_lab.runs import Run
from maetok_lab.tokenizer.masking import MaskingConfig
from maetok_lab.widgets.front import BLANK
from maetok_lab.widgets.run_browser import RunBrowser, readable_number


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "runs"
    for number, name in enumerate(("one", "two", "empty")):
        run = Run.open(name, MaskingConfig(high=0.6 + number / 10), root=root)
        if name == "empty":
            continue
        for step in (1, 2):
            run.log(
                {"step": step, "split": "train", "pixel": number + 1 / step}
                | ({"kl": 1.0} if number else {})
            )
        for step in (10, 20):
            run.sample_path(step).write_bytes(f"{name} {step}".encode())
    return root


@pytest.fixture
def browser(root):
    browser = RunBrowser(root)
    assert browser.view
    return browser


def drawn(browser):
    return {line["name"]: line["y"] for line in browser.chart.spec["lines"]}


def test_losses_of_the_chosen_runs_are_overlaid(browser):
    assert browser.controls.runs.options == ("empty", "one", "two")
    assert browser.controls.column.options == ("pixel", "kl")
    assert drawn(browser) == {"one": [1.0, 0.5], "two": [2.0, 1.5]}
    browser.controls.column.value = "kl"
    assert drawn(browser) == {"two": [1.0, 1.0]}
    browser.controls.log.value = True
    assert browser.chart.spec["y"] == {"label": "kl", "log": True}


def test_only_what_differs_between_configs_is_shown(browser):
    assert "<th>high</th>" in browser.differences.value
    assert "<th>low</th>" not in browser.differences.value
    browser.controls.runs.value = ["two"]
    assert browser.differences.value == ""
    assert drawn(browser) == {"two": [2.0, 1.5]}


def test_words_filter_the_list_and_what_is_chosen_stays(browser):
    see = browser.controls
    see.runs.value = ["two"]
    see.words.value = "ONE"
    assert see.runs.options == ("two", "one")
    assert see.runs.value == ("two",)
    assert list(drawn(browser)) == ["two"]
    see.words.value = ""
    assert set(see.runs.options) == {"empty", "one", "two"}


def test_numbers_in_tables_are_for_reading():
    numbers = {12800: "12,800", 0.123456: "0.1235", 1234.5: "1,234", 3.0: "3", math.nan: ""}
    assert [readable_number(value) for value in numbers] == list(numbers.values())


def test_the_slider_walks_through_the_pictures(browser):
    see = browser.controls
    assert see.picture.max == 3
    see.picture.value = 2
    assert browser.image.value == b"two 10"
    assert browser.title.value == "two, step 10"
    see.runs.value = ["empty"]
    assert (browser.image.value, browser.title.value) == (BLANK, "no pictures")
    assert see.picture.disabled
    assert see.column.value is None
    assert drawn(browser) == {}
    see.runs.value = ["one"]
    assert browser.image.value == b"one 10"


def test_notebooks_that_reported_a_run_are_linked(root):
    folder = root / "notebooks" / "demo"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text('{"runs": ["../../one"]}')
    (folder / "notebook.html").write_text("")
    browser = RunBrowser(root, selection=["one"])
    assert browser.view
    assert "href='/files/runs/notebooks/demo/notebook.html'" in browser.links.value


def test_the_twin_has_the_same_lines(browser):
    figure = browser.twin()
    assert {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines} == drawn(
        browser
    )
    assert RunBrowser(browser.root, selection=["empty"]).twin() is None


def test_what_is_not_there_is_said(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no runs in"):
        RunBrowser(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no run 'three'"):
        RunBrowser(root, selection=["three"])
    with pytest.raises(ValueError, match="no column 'x' was logged; choose one of"):
        RunBrowser(root, column="x")


def test_what_a_folder_of_somebody_elses_says_is_text_and_no_page(root):
    bad = "<script>alert(1)</script>"
    hostile = root / "<b>evil"
    shutil.copytree(root / "one", hostile)
    (hostile / "summary.json").write_text(json.dumps({bad: 1}))
    config = json.loads((hostile / "config.json").read_text())
    config["config"]["kind"] = bad
    (hostile / "config.json").write_text(json.dumps(config))

    browser = RunBrowser(root)
    assert browser.view
    browser.controls.runs.value = ["one", "<b>evil"]
    pages = (browser.about, browser.differences, browser.links, browser.title)
    text = "".join(page.value for page in pages)
    assert "&lt;b&gt;evil" in text
    assert "&lt;script&gt;" in text
    assert "<script>" not in text
    assert "<b>evil" not in text
