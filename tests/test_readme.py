"""What the pages tell people to type exists or runs, and what they link to is there."""

import ast
import asyncio
import importlib
import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maetok_lab.__main__ import parser
from maetok_lab.config import override
from maetok_lab.experiments.ladder import Ladder
from maetok_lab.experiments.study import STUDIES, study_table
from maetok_lab.runs import run as run_module
from maetok_lab.training.presets import ladder_training
from maetok_lab.workflow.parameters import check_parameters, parse_parameters, read_defaults
from maetok_lab.workflow.spec import read_spec

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "maetok_lab"
PAGES = {  # by the path from the root
    path: (ROOT / path).read_text(encoding="utf-8")
    for path in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/guide.md",
        "docs/results.md",
        "docs/not-worked.md",
        "docs/measures.md",
        "docs/design.md",
    )
}
README = PAGES["README.md"]
SHELL = ("sh", "bash", "shell", "console")
ELSEWHERE = ("http://", "https://", "mailto:")
OTHER_PROGRAMS = ("git", "cd", "conda", "source", "pip", "export", "ssh", "du", "rm")
LONGEST_LINE = 95  # of code, as in notebooks


def fenced(page=README):
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def without_fences(page):
    return re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)


def commands(page):
    """Every command line of the fenced shell blocks, in words, without prompts, comments and
    settings before it; then those of the text, unless a word stands for another.
    """
    blocks = [text for language, text in fenced(page) if language in SHELL]
    blocks += [
        line
        for line in re.findall(r"`((?:python|make) [^`\n]+)`", without_fences(page))
        if not re.search(r" [A-Z]+\b", line)  # a word that stands for another
    ]
    for text in blocks:
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"^\s*\$ ", "", line), comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def check_run(words):
    """A line of `python -m maetok_lab`: it parses, and its notebook takes its parameters."""
    arguments = parser().parse_args(words)
    if arguments.command == "run":
        defaults = read_defaults(ROOT / arguments.notebook)
        parameters = parse_parameters(defaults, arguments.parameters)
        check_parameters(defaults, parameters)
        if arguments.notebook.startswith("notebooks/02_"):
            override(ladder_training("tiny", "all"), parameters.get("changes", {}))
    if arguments.command == "sweep" and Path(ROOT / arguments.spec).exists():
        defaults = read_defaults(read_spec(ROOT / arguments.spec).notebook)
        changes = parse_parameters(defaults, arguments.parameters)
        spec = read_spec(ROOT / arguments.spec, changes)
        check_parameters(defaults, spec.fixed | spec.entries[0])
    if arguments.command == "investigate":
        defaults = read_defaults(ROOT / "notebooks" / "05_latent_space.ipynb")
        check_parameters(defaults, parse_parameters(defaults, arguments.parameters))


def check_papermill(words):
    defaults = read_defaults(ROOT / next(word for word in words if word.endswith(".ipynb")))
    given = [
        (name, value) for flag, name, value in zip(words, words[1:], words[2:]) if flag == "-p"
    ]
    check_parameters(defaults, parse_parameters(defaults, given))


def all_commands():
    """Each command once, with the first page that has it."""
    lines = {}
    for path, page in PAGES.items():
        for words in commands(page):
            lines.setdefault(" ".join(words), (path, words))
    return [pytest.param(words, id=f"{path}: {line}") for line, (path, words) in lines.items()]


@pytest.mark.parametrize("words", all_commands())
def test_a_command_of_a_page_exists(words):
    program = Path(words[0]).name
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        wanted = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        assert set(wanted) <= set(targets)
    elif program.startswith("python"):
        if words[1:3] == ["-m", "maetok_lab"]:
            check_run(words[3:])
        elif words[1:3] == ["-m", "papermill"]:
            check_papermill(words[3:])
        else:
            assert words[1] == "-m" or (ROOT / words[1]).is_file()
    elif program == "papermill":
        check_papermill(words[1:])
    else:
        assert program in OTHER_PROGRAMS or (ROOT / words[0]).is_file()
        files = [word for word in words[1:] if re.search(r"\.(yml|toml|txt|ipynb|py)$", word)]
        assert not [file for file in files if not (ROOT / file).exists()]


def links(page):
    """Every link and picture, in Markdown or HTML, outside of code."""
    prose = re.sub(r"`[^`\n]*`", "", without_fences(page))
    found = re.findall(r"\]\(([^)\s]+)[^)]*\)", prose) + re.findall(
        r"(?:src|href)=[\"']([^\"']+)", prose
    )
    return sorted({link for link in found if not link.startswith(ELSEWHERE)})


def all_links():
    return [(path, link) for path, page in PAGES.items() for link in links(page)]


@pytest.mark.parametrize(("page", "link"), all_links())
def test_a_link_of_a_page_resolves(page, link):
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists()
    assert target.resolve().is_relative_to(ROOT)
    if anchor and target.suffix == ".md":
        headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in [
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
        ]


@pytest.mark.parametrize("page", PAGES)
def test_the_notebooks_that_a_page_names_exist(page):
    named = set(re.findall(r"\b\d\d_[a-z]\w+(?:\.ipynb)?\b", PAGES[page]))
    there = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {name.removesuffix(".ipynb") for name in named} <= there


def test_its_python_runs_block_by_block_as_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "runs_root", lambda path=None: Path(path or tmp_path))
    blocks = [text for language, text in fenced() if language == "python"]
    assert blocks
    names = {}
    for text in blocks:
        assert max(map(len, text.splitlines())) <= LONGEST_LINE
        # preset "test" is the same in seconds; a notebook's cell may await
        source = text.replace('"tiny"', '"test"')
        code = compile(source, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        answer = eval(code, names)
        if inspect.iscoroutine(answer):
            asyncio.run(answer)
    assert names["latents"].shape == (8, 32, 16)
    assert names["reconstructions"].shape == (8, 3, 64, 64)
    assert names["run"].finished
    assert names["run"].folder.parent == tmp_path


def test_the_guides_python_runs_block_by_block_on_a_folder_of_pictures(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "my-images" / "noise"
    folder.mkdir(parents=True)
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3))):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    blocks = [text for language, text in fenced(PAGES["docs/guide.md"]) if language == "python"]
    names = {}
    for text in blocks:
        assert max(map(len, text.splitlines())) <= LONGEST_LINE
        exec(compile(text, "guide.md", "exec"), names)

    assert names["config"].masking.low == 0.2
    assert {"psnr", "ssim", "rkid_efflite2", "rfd_efflite2"} == set(names["result"].metrics)
    assert "truncated" in capsys.readouterr().out
    tokenizer = names["MyTokenizer"]()
    assert isinstance(tokenizer, names["lab"].protocols.AnyTokenizer)
    images = names["images"].batch(range(2))[0]
    latents = tokenizer.encode(images)
    assert latents.shape == (2, *tokenizer.latent_shape)
    again = tokenizer.encode(tokenizer.decode(latents))
    assert (again - latents).abs().mean() < 0.5 * latents.abs().mean()


def test_the_guides_sweep_is_one(tmp_path):
    (text,) = [text for language, text in fenced(PAGES["docs/guide.md"]) if language == "toml"]
    file = tmp_path / "rates.toml"
    file.write_text(text.replace('"02_', f'"{ROOT}/notebooks/02_'))
    spec = read_spec(file)
    assert len(spec.entries) == 4
    assert spec.larger_is_better
    defaults = read_defaults(spec.notebook)
    for entry in spec.entries:
        check_parameters(defaults, spec.fixed | entry)


def test_the_intervals_of_the_pages_are_those_of_the_shipped_study(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("study")
    study = STUDIES["tiny"]
    table = study_table(study, Ladder("tiny").images["train"].fingerprint, results="shipped")
    rungs = table[table["kind"] == "rung"]
    printed = benchmark.as_text(benchmark.numbers_of(table))
    for score in benchmark.SCORES:
        printed += benchmark.as_text(benchmark.at_equal(table, score))
    printed += benchmark.as_text(benchmark.predicting(rungs, "kid"))

    # "0.591 (0.559 to 0.624)", in tables and sentences
    intervals = {
        (path, interval)
        for path in ("README.md", "docs/results.md", "docs/not-worked.md", "docs/guide.md")
        for interval in re.findall(r"-?[\d.]+ \(-?[\d.]+ to -?[\d.]+\)", PAGES[path])
    }
    assert len(intervals) > 40
    assert [(path, interval) for path, interval in intervals if interval not in printed] == []


def numbers(text):
    """Decimal numbers of a text, as they are written."""
    return re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", re.sub(r"`[^`]*`", "", text))


def test_what_came_out_of_a_notebook_stands_on_its_executed_page():
    rows = re.findall(
        r"^\| \[\w+\]\(notebooks/.*\[([^\]]+)\]\((docs/executed/\w+\.md)\)", README, re.M
    )
    assert len(rows) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    for text, page in rows:
        outputs = (ROOT / page).read_text(encoding="utf-8")
        assert [number for number in numbers(text) if number not in outputs] == [], page


def test_the_demos_numbers_are_those_of_its_executed_page():
    demo = (ROOT / "docs" / "executed" / "00_start_here.md").read_text(encoding="utf-8")
    section = PAGES["docs/results.md"].split("## The demo")[1]
    values = re.findall(r"^\| [^|]+ \| ([^|]+) \|", section, re.MULTILINE)
    section = README.split("And what it printed")[1].split("Most of the distance")[0]
    values += re.findall(r"^\| [^|]+ \| ([^|]+) \|", section, re.MULTILINE)
    table = [number for value in values for number in numbers(value)]
    assert len(table) >= 22
    assert [number for number in table if number not in demo] == []


def test_its_tree_is_the_real_one():
    tree = next(text for language, text in fenced() if text.startswith("maetok_lab/"))
    folders = []
    for line in tree.splitlines():
        name = line.split()[0]
        folders.append(f"maetok_lab/{name}" if line.startswith(" ") else name)
    made_later = "runs/"
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] in ([], [made_later])
    rooms = {f"maetok_lab/{path.parent.name}/" for path in LIBRARY.glob("*/__init__.py")}
    assert {folder for folder in folders if folder.count("/") == 2} == rooms
