"""An executed notebook's page: results first, code and logs folded, contents, links that lead."""

import re

import pytest

pytest.importorskip("nbformat")
pytest.importorskip("nbconvert")

from nbformat import v4

from maetok_lab.workflow.page import short_number, write_html
from maetok_lab.workflow.summary import MIME

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def picture():
    return v4.new_output("display_data", {"image/png": PIXEL})


def cells():
    numbers = {MIME: {"numbers": {"psnr": 20}, "runs": []}, "text/html": "<p>psnr 20</p>"}
    log = "".join(f"step {step}\n" for step in range(9))
    table = "<table><tr><td>0.586912</td><td>1234.56789</td><td>7</td></tr></table>"
    return [
        v4.new_markdown_cell("# Title\n\nRead [01](01_images.ipynb), [02](02_no.ipynb#a)."),
        v4.new_code_cell("preset = 1", metadata={"tags": ["parameters"]}),
        v4.new_markdown_cell("## First part\n\n### Deeper <b>"),
        v4.new_code_cell("train()", outputs=[v4.new_output("stream", text=log), picture()]),
        v4.new_code_cell("plot()", outputs=[picture()], metadata={"tags": ["highlight"]}),
        v4.new_code_cell("", outputs=[]),
        v4.new_code_cell(
            "report()",
            outputs=[
                v4.new_output("stream", text="saved in /home/me/lab/runs/a\n"),
                v4.new_output("execute_result", {"text/html": table}),
                v4.new_output("display_data", numbers),
            ],
        ),
    ]


@pytest.fixture
def page(tmp_path):
    """The page's text without its style."""
    (tmp_path / "01_images-tiny-s1").mkdir()
    (tmp_path / "01_images-tiny-s1" / "notebook.html").write_text("")
    path = tmp_path / "00_start-tiny-s0" / "notebook.html"
    book = v4.new_notebook(cells=cells())
    write_html(book, path, folder=tmp_path, home=type(tmp_path)("/home/me/lab"))
    return re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.DOTALL)


def test_the_verdict_comes_after_the_first_words_and_before_all_code(page):
    assert page.index("<h1") < page.index("<section") < page.index("<details>")
    verdict = page[page.index("<section") : page.index("</section>")]
    assert "psnr 20" in verdict
    assert verdict.count(PIXEL) == 1, "of the tagged cell alone"
    assert verdict.index(PIXEL) < verdict.index("psnr 20")


def test_pictures_have_words_and_nothing_is_warned_of(page, caplog):
    assert "No description" not in page
    assert page.count('alt="figure"') == 3
    assert not caplog.get_records("setup")


def test_every_heading_is_in_the_contents_and_has_its_place(page):
    contents = page[page.index("<nav") : page.index("</nav>")]
    targets = re.findall(r"href='#(part-\d+)'[^>]*>([^<]*)", contents)
    assert [words for _, words in targets] == ["Title", "In short", "First part", "Deeper "]
    for target, _ in targets:
        assert len(re.findall(f"<h[123] id='{target}'", page)) == 1


def test_code_and_long_logs_are_folded(page):
    summaries = re.findall(r"<summary>(.*?)</summary>", page)
    assert summaries == ["parameters", "code", "9 lines, the last: step 8", "code", "code"]
    outside = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert "step 5" not in outside
    assert "train" not in outside


def test_links_lead_to_pages_that_are_there_and_paths_are_the_projects(page):
    assert '<a href="../01_images-tiny-s1/notebook.html">01</a>' in page
    assert "02_no" not in page
    assert ", 02." in page
    assert "saved in runs/a" in page
    assert "/home/me" not in page


def test_numbers_have_three_digits(page):
    assert "<td>0.587</td><td>1235</td><td>7</td>" in page
    assert [short_number(v) for v in (0.0012345, -12.3456, 0.0, 99999.5)] == [
        "0.00123",
        "-12.3",
        "0",
        "100000",
    ]
