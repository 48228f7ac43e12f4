"""What the README tells people to type exists or runs, and what it links to is there."""

import ast
import asyncio
import inspect
import re
import shlex
from pathlib import Path

import pytest

from maetok_lab.__main__ import parser
from maetok_lab.runs import run as run_module
from maetok_lab.workflow.parameters import check_parameters, parse_parameters, read_defaults

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "maetok_lab"
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = ("sh", "bash", "shell", "console")
ELSEWHERE = ("http://", "https://", "mailto:")
OTHER_PROGRAMS = ("git", "cd", "conda", "source", "pip", "export")
LONGEST_LINE = 95  # of code, as in notebooks


def fenced():
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands():
    """Every command line of the fenced shell blocks, in words, without prompts, comments and
    settings before it.
    """
    for language, text in fenced():
        for line in text.replace("\\\n", " ").splitlines() if language in SHELL else []:
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
        check_parameters(defaults, parse_parameters(defaults, arguments.parameters))
    if arguments.command == "investigate":
        defaults = read_defaults(ROOT / "notebooks" / "05_latent_space.ipynb")
        check_parameters(defaults, parse_parameters(defaults, arguments.parameters))


def check_papermill(words):
    defaults = read_defaults(ROOT / next(word for word in words if word.endswith(".ipynb")))
    given = [
        (name, value) for flag, name, value in zip(words, words[1:], words[2:]) if flag == "-p"
    ]
    check_parameters(defaults, parse_parameters(defaults, given))


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_a_command_of_the_readme_exists(words):
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


def links():
    """Every link and picture, in Markdown or HTML, outside of code."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", README, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)[^)]*\)", prose) + re.findall(
        r"(?:src|href)=[\"']([^\"']+)", prose
    )
    return sorted({link for link in found if not link.startswith(ELSEWHERE)})


@pytest.mark.parametrize("link", links())
def test_a_link_of_the_readme_resolves(link):
    path, _, anchor = link.partition("#")
    target = ROOT / path if path else ROOT / "README.md"
    assert target.exists()
    assert target.resolve().is_relative_to(ROOT)
    if anchor and target.suffix == ".md":
        headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in [
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
        ]


def test_the_notebooks_it_names_exist():
    named = set(re.findall(r"\b\d\d_\w+(?:\.ipynb)?\b", README))
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
