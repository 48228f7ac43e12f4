"""The site: pages made of notebooks, tables and the API; what is built resolves, and is alone."""

import base64
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from maetok_lab.analysis.definitions import MEASURES
from maetok_lab.files import write_json
from maetok_lab.tokenizer import published_results, tokenizers
from maetok_lab.workflow.parameters import read_cells

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(DOCS)
    patch.syspath_prepend(HERE)
    from builder import cleaning, executed, links, notebooks, reference, tables, words
    from site_links import problems

needs_docs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None,
    reason="the site needs mkdocs: make docs, or pip install -e '.[docs]'",
)
PARAMETERS = (
    'preset = "tiny"  # sizes\nseed = 0  # of draws\nscale = 1.0  # of it\nruns = None  # folder'
)


# Executed notebooks -------------------------------------------------------------------------------


def png(width=300, height=250):
    file = io.BytesIO()
    Image.new("RGBA", (width, height), (0, 0, 255, 128)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def shown(**data):
    kinds = {"html": "text/html", "png": "image/png", "text": "text/plain"}
    data = {kinds.get(kind, kind): value for kind, value in data.items()}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def printed(*lines):
    return {"output_type": "stream", "name": "stdout", "text": [f"{line}\n" for line in lines]}


def code(source, *outputs, **metadata):
    cell = {"cell_type": "code", "source": source, "outputs": list(outputs), "metadata": metadata}
    return {**cell, "execution_count": 1}


def prose(source):
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def store(runs, *cells, name="answer", preset="tiny", ended="2026-01-01T10:00:00+00:00", scale=1.0):
    """A finished copy of a notebook, as `run_notebook` leaves it."""
    folder = runs / "notebooks" / f"{name}-{preset}-s0-{ended[:10]}"
    folder.mkdir(parents=True)
    opening = [prose("# An answer\n\n**Question.** Why?"), code(PARAMETERS, tags=["parameters"])]
    injected = code(f'runs = "{runs}"', tags=["injected-parameters"])
    write_json(folder / "notebook.ipynb", {"cells": [*opening, injected, *cells]})
    values = {"preset": preset, "seed": 0, "scale": scale, "runs": str(runs)}
    write_json(folder / "parameters.json", values)
    origin = {"commit": "0123456789abcdef", "dirty": False}
    write_json(folder / "summary.json", {"ended": ended, "seconds": 75.0, "provenance": origin})
    return folder


def page_of(runs, *cells, **options):
    store(runs, *cells, **options)
    output = runs / "pages"
    output.mkdir()
    copy = executed.newest_copy(runs, "answer", options.get("preset", "tiny"))
    page, *pictures = executed.write_page(copy, "answer", output)
    return page.read_text(), pictures


def test_the_head_says_command_preset_seed_commit_and_date(tmp_path):
    page, _ = page_of(tmp_path, scale=2.0)
    assert "`python -m maetok_lab run notebooks/answer.ipynb -p scale 2.0`" in page
    head = next(line for line in page.splitlines() if line.startswith("> "))
    for fact in ("preset `tiny`", "seed 0", "commit `0123456789`", "2026-01-01", "1:15"):
        assert fact in head
    assert str(tmp_path) not in page  # nor the cell that was injected
    assert page.index("# An answer") < page.index("> Executed") < page.index("**Question.**")


def test_the_newest_copy_of_the_preset_is_taken(tmp_path):
    store(tmp_path, ended="2026-01-02T10:00:00+00:00")
    newest = store(tmp_path, ended="2026-01-03T10:00:00+00:00")
    store(tmp_path, preset="test", ended="2026-01-04T10:00:00+00:00")
    unfinished = store(tmp_path, ended="2026-01-05T10:00:00+00:00")
    (unfinished / "summary.json").unlink()
    assert executed.newest_copy(tmp_path, "answer", "tiny").folder == newest
    assert executed.newest_copy(tmp_path, "answer", "small") is None


def test_pictures_become_webp_on_white_no_wider_than_a_page(tmp_path):
    page, pictures = page_of(
        tmp_path, prose("## Blue"), code("draw()", shown(png=png(2000, 100)), shown(png=png()))
    )
    assert [file.name for file in pictures] == ["answer-1.webp", "answer-2.webp"]
    assert "[![Blue](answer-1.webp)](answer-1.webp)" in page
    wide = Image.open(pictures[0])
    assert (wide.format, wide.size) == ("WEBP", (1400, 70))
    assert wide.convert("RGB").getpixel((10, 10)) == pytest.approx((127, 127, 255), abs=6)


def test_a_living_view_becomes_its_twin_or_one_line(tmp_path):
    view = {executed.WIDGET: {"model_id": "x"}, "text": "Box()"}
    still = (
        f"<style>p {{}}</style><div class='maetok-still'><img src='data:image/png;base64,{png()}'>"
    )
    page, pictures = page_of(
        tmp_path,
        code("alone", shown(**view)),
        code("with_twin", shown(**view), shown(png=png())),
        code("stored", shown(html=still + "<script>x()</script>")),
    )
    assert len(pictures) == 2
    assert page.count(executed.LIVE) == 1
    assert page.index("alone") < page.index(executed.LIVE) < page.index("with_twin")
    assert "<script" not in page
    assert "Box()" not in page


def test_long_text_is_clipped_and_says_so(tmp_path):
    steps = [printed(f"step {number}", f"also {number}") for number in range(50)]
    page, _ = page_of(tmp_path, code("train()", *steps), code("draw()", printed("a\rb", "c" * 300)))
    assert "... 70 lines are left out here ..." in page
    assert "step 0\n" in page
    assert "also 49\n" in page
    assert "step 25" not in page
    assert "\nb\n" in page
    assert f"{'c' * 200} ...\n" in page


def test_tables_keep_their_cells_alone():
    row = "<tr class='x'><th scope='row'>a &amp; b</th><td style='color: red'>0.123456</td></tr>"
    text = f"<div><style scoped>td {{}}</style><table border='1'><tbody>{row}</tbody></table></div>"
    body = cleaning.cleaned(text + "<script>alert('x')</script>")
    assert body == ("<table><tbody><tr><th>a &amp; b</th><td>0.123</td></tr></tbody></table>")


def test_a_long_table_is_clipped_and_says_so():
    rows = "".join(f"<tr><td>row {number % 7}</td></tr>" for number in range(100))
    table = f"<table><thead><tr><th>x</th></tr></thead><tbody>{rows}</tbody></table>"
    body = cleaning.cleaned(table)
    assert body.count("<tr>") == cleaning.MOST_ROWS + 1
    assert body.count("</tbody></table>") == 1
    assert "60 more rows are left out here." in body


def test_older_pictures_of_a_page_go(tmp_path):
    output = tmp_path / "pages"
    output.mkdir()
    for name in ("answer-7.webp", "other-1.webp"):
        (output / name).write_bytes(b"")
    store(tmp_path)
    executed.write_page(executed.newest_copy(tmp_path, "answer", "tiny"), "answer", output)
    assert sorted(file.name for file in output.iterdir()) == ["answer.md", "other-1.webp"]


# Notebooks at build time --------------------------------------------------------------------------


def test_changed_code_is_marked_on_the_page_and_changed_prose_is_not():
    cells = [prose("# T"), code("a = 1")]
    injected = code("a = 2", tags=["injected-parameters"])
    digest = notebooks.cells_digest([prose("# Other"), cells[1], injected])
    page = "# T\n\nwords\n"
    assert notebooks.with_note(page, cells, digest, "answer") == page
    marked = notebooks.with_note(page, [prose("# T"), code("a = 3")], digest, "answer")
    assert "changed since" in marked
    assert "`python -m maetok_lab run notebooks/answer.ipynb`" in marked
    assert marked.index("# T") < marked.index("changed since") < marked.index("words")


def test_a_notebook_that_was_not_executed_says_how_to_get_outputs():
    page = notebooks.page_without_outputs([prose("# T\nWhy?"), code("a = 1")], "answer")
    assert page.startswith("# T\n")
    assert "python -m maetok_lab run notebooks/answer.ipynb" in page
    assert "```python\na = 1\n```" in page


def test_the_index_has_title_question_and_time_of_every_notebook():
    page = notebooks.index_page()
    for path in notebooks.notebook_paths():
        assert f"({path.stem}.md)" in page
        cells = read_cells(path)
        if cells[0]["cell_type"] == "markdown":  # mask_demo has no prose
            facts = notebooks.facts_of(cells)
            assert facts["Question"] in page
            assert facts["Time"] in page


def test_several_facts_on_a_line_are_told_apart():
    facts = notebooks.facts_of([prose("# T\n\n**Read:** a (b). **Made:** c.\n**Time:** 1 min")])
    assert facts == {"Read": "a (b).", "Made": "c.", "Time": "1 min"}


# Links and words ----------------------------------------------------------------------------------

LINKS = {  # in a notebook -> on its page executed/x.md
    "[a](00_start_here.ipynb)": "[a](00_start_here.md)",
    "[a](../README.md#notebooks)": "[a](../index.md#notebooks)",
    "[a](../docs/results.md)": "[a](../results.md)",
    "![a `b`](../docs/study.png)": "![a `b`](../study.png)",
    "[`data/study.csv`](../data/study.csv)": "`data/study.csv`",
    "[the rows](../data/study.csv)": "the rows (`data/study.csv`)",
    "[a](../docs/make_picture.py)": "a (`docs/make_picture.py`)",
    "[a](https://arxiv.org/abs/2502.03444)": "[a](https://arxiv.org/abs/2502.03444)",
    "[a](#here)": "[a](#here)",
    "[a](nothing.md)": "[a](nothing.md)",
    "`[a](../data/study.csv)`": "`[a](../data/study.csv)`",
    "```\n[a](../data/study.csv)\n```": "```\n[a](../data/study.csv)\n```",
}


@pytest.mark.parametrize("text", LINKS)
def test_a_link_holds_on_the_site(text):
    targets = links.pages()
    page = links.rewritten(f"x {text} y", "notebooks/x.ipynb", "executed/x.md", targets)
    assert page == f"x {LINKS[text]} y" or text.startswith("```")
    assert LINKS[text] in links.rewritten(text, "notebooks/x.ipynb", "executed/x.md", targets)


def test_a_link_of_a_notebook_holds_in_the_committed_page():
    text = "[a](00_start_here.ipynb) [b](../README.md#notebooks)"
    moved = links.moved(text, "notebooks/x.ipynb", "docs/executed/x.md")
    assert moved == "[a](../../notebooks/00_start_here.ipynb) [b](../../README.md#notebooks)"


def test_lists_and_tables_begin_after_an_empty_line():
    text = "words\n- a\n- b\n\nwords\n| a |\n| --- |\n\n```\nx\n- y\n```\n"
    spaced = "words\n\n- a\n- b\n\nwords\n\n| a |\n| --- |\n\n```\nx\n- y\n```\n"
    assert words.spaced(text) == spaced


# Pages made of the library ------------------------------------------------------------------------


def test_the_card_has_every_measure_with_its_source():
    page = tables.card_page()
    for measure, (formula, source, _) in MEASURES.items():
        section = page.split(f"## `{measure}`\n")[1].split("\n## ")[0]
        assert words.plain(formula) in section
        assert words.plain(source) in section


def test_the_registry_has_every_tokenizer_and_every_published_number():
    registry, published = tables.tokenizers_page().split("## What has been published")
    for name in tokenizers().index:
        assert f"`{name}`" in registry
    rows = [line for line in published.splitlines() if line.startswith("| ")]
    measures = published_results()["measure"].nunique()
    assert len(rows) == len(published_results()) + 2 * measures


def test_every_room_has_a_page_with_its_public_names_alone():
    pages = reference.api_pages()
    for room in reference.rooms():
        entries = re.findall(r"^::: maetok_lab\.(\S+)$", pages[f"api/{room}.md"], re.MULTILINE)
        assert entries, room
        assert not [entry for entry in entries if any(p[0] == "_" for p in entry.split("."))]
        for name in reference.offers_of(room):
            assert name in pages[f"api/{room}.md"]


def test_rooms_stand_in_the_order_of_the_design_and_a_new_one_appears(monkeypatch):
    rows = list(reference.design_rows())
    rooms = reference.rooms()
    assert rooms == [name for name in rows if name in rooms]
    assert {"plots", "workflow"} < set(rooms)
    monkeypatch.setattr(reference, "design_rows", lambda: {"data": ("", [])})
    assert reference.rooms() == ["data", *sorted(set(rooms) - {"data"})]


@needs_docs
def test_the_comment_of_a_field_is_its_documentation(tmp_path):
    from builder.comments import comment_of

    file = tmp_path / "config.py"
    file.write_text(
        'a = "#"  # beside\n# above, in\n# two lines\nb = (\n    1,  # inside\n)\nc = 1\n'
    )
    assert comment_of(file, 1, 1) == "beside"
    assert comment_of(file, 4, 6) == "above, in two lines"
    assert comment_of(file, 7, 7) == ""


# The site -----------------------------------------------------------------------------------------


def test_the_check_of_a_site_finds_what_is_wrong(tmp_path):
    (tmp_path / "a.html").write_text(
        "<style>p {background: url(https://x.org/1.png)}</style><p id='here'>"
        "<a href='b.html#there'></a><a href='#here'></a><a href='c.html'></a>"
        "<a href='https://x.org'></a><script src='//x.org/2.js'></script>"
        "<img src='d.png'><link rel='stylesheet' href='e.css'>"
    )
    (tmp_path / "b.html").write_text("<p id='elsewhere'>")
    (tmp_path / "e.css").write_text("@import 'https://x.org/3.css'; p {background: url(f.png)}")
    wrong = "\n".join(problems(tmp_path))
    for address in ("1.png", "#there", "c.html", "2.js", "d.png", "3.css", "f.png"):
        assert address in wrong
    assert len(wrong.splitlines()) == 7


def test_make_docs_fails_on_a_warning(repository):
    build = next(
        line
        for line in (repository / "Makefile").read_text().splitlines()
        if "mkdocs build" in line
    )
    assert "--strict" in build
    assert "--quiet" not in build  # mkdocs then counts no warning


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory):
    """The real site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    result = subprocess.run(
        command,
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@needs_docs
@pytest.mark.slow
def test_the_site_has_no_dead_link_and_loads_nothing_from_elsewhere(site):
    assert problems(site) == []
    assert not list(site.rglob("*.py"))


@needs_docs
@pytest.mark.slow
@pytest.mark.browser
def test_the_site_is_searched_from_the_disk_without_a_request(site):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright's package")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("browser tests need chromium: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.click(".md-search__input")
        page.keyboard.type("participation_ratio")
        page.wait_for_selector(".md-search-result__link[href*='card.html']", timeout=60_000)
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "data:", "about:"))] == []


@needs_docs
@pytest.mark.slow
def test_the_search_knows_every_page(site):
    index = json.loads((site / "search" / "search_index.json").read_text())
    places = {entry["location"].partition("#")[0] for entry in index["docs"]}
    pages = {str(file.relative_to(site)) for file in site.rglob("*.html")} - {"404.html"}
    assert pages <= places | {"index.html"}
