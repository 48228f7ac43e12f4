"""The prose of every notebook has one form: a reader knows what it asks, and where to go on."""

import ast
import re
from pathlib import Path

import pytest

from maetok_lab.workflow.parameters import (
    check_parameters,
    check_words,
    read_cells,
    read_parameters,
)

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
MAIN = "00_start_here.ipynb"
# The order in which they are read.
READING = [
    *("00_start_here", "01_images", "02_train_tokenizer", "03_finetune_decoder", "mask_demo"),
    *("04_mask_studio", "05_latent_space", "06_train_diffusion", "07_generation_sweep"),
    *("08_evaluate", "09_compare_tokenizers", "10_will_it_fit", "11_study_row"),
]
TRY_THIS = "> **Try this.**"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def prose(path):
    """The texts of the Markdown cells."""
    return [cell["source"] for cell in read_cells(path) if cell["cell_type"] == "markdown"]


@each_notebook
def test_there_is_prose_for_the_code(path):
    cells = read_cells(path)
    if path.stem == "mask_demo":  # a page to be touched: all prose stands below it
        assert [cell["cell_type"] for cell in cells] == [*["code"] * (len(cells) - 1), "markdown"]
        return
    assert cells[0]["cell_type"] == "markdown"
    words = prose(path)
    assert len(words) >= 0.6 * (len(cells) - len(words))


@each_notebook
def test_a_title_is_number_name_and_what_it_is_about_and_four_lines_say_what_to_expect(path):
    title = prose(path)[0].splitlines()[0]
    number = "Mask demo" if path.stem == "mask_demo" else path.stem[:2]
    assert re.fullmatch(rf"# {number} · [^·:]+: \S.+", title), title
    text = "\n".join(prose(path))
    for word in ("**Question.**", "**Read:**", "**Made:**", "**Time:**"):
        assert text.count(word) == 1, word


def way_on(stem):
    """The last line of a notebook: what is read before it and after it."""
    place = READING.index(stem)
    words = []
    if place > 0:
        words.append(f"**Previous:** [{READING[place - 1]}]({READING[place - 1]}.ipynb)")
    if place < len(READING) - 1:
        words.append(f"**Next:** [{READING[place + 1]}]({READING[place + 1]}.ipynb)")
    return " · ".join([*words, "[all notebooks](../README.md#notebooks)"])


def test_the_order_of_reading_has_every_notebook_once_and_numbers_rise():
    assert sorted(READING) == [path.stem for path in NOTEBOOKS]
    numbered = [stem for stem in READING if stem[0].isdigit()]
    assert numbered == sorted(numbered)


@each_notebook
def test_the_last_line_of_prose_leads_to_the_notebooks_before_and_after(path):
    *_, last = prose(path)
    assert last.splitlines()[-1] == way_on(path.stem)
    assert "**Onward" not in "\n".join(prose(path))


@each_notebook
def test_links_between_notebooks_and_to_pages_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", "\n".join(prose(path))):
        assert (path.parent / target).is_file(), target


def boxes(path):
    """The "Try this" boxes: block quotes, each a paragraph or more."""
    quotes = []
    for text in prose(path):
        for quote in re.findall(r"(?:^>.*\n?)+", text, flags=re.MULTILINE):
            if quote.startswith(TRY_THIS):
                quotes.append(quote)
    return quotes


@each_notebook
def test_boxes_to_try_are_few_and_name_parameters_that_exist_with_values_of_their_type(path):
    quotes = boxes(path)
    assert 1 <= len(quotes) <= 3
    parameters = read_parameters(path)
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    for quote in quotes:
        changes = re.findall(r"`(\w+) = ([^`]+)`", quote)
        assert changes, f"nothing to change: {quote}"
        values = {name: ast.literal_eval(value) for name, value in changes}
        assert set(values) <= set(parameters), quote
        check_parameters(defaults, values)
        check_words(parameters, values)
        assert any(values[name] != defaults[name] for name in values), quote


@each_notebook
def test_whoever_speaks_of_kid_says_where_it_is_defined(path):
    text = "\n".join(prose(path))
    if re.search(r"\bKID\b", text) and path.name != MAIN:
        assert "[00_start_here](00_start_here.ipynb)" in text
