"""What set-up reads: one list of dependencies, one of tested versions, and no third."""

import contextlib
import datetime
import importlib.metadata
import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


DOCS = "docs"  # the extra that `make docs` adds to what `make setup` installs


@pytest.fixture(scope="module")
def extras(project):
    """The extras that set-up installs, in their order."""
    return [name for name in project["optional-dependencies"] if name != DOCS]


@pytest.fixture(scope="module")
def requirements(project, extras):
    groups = [project["dependencies"], *(project["optional-dependencies"][name] for name in extras)]
    return [Requirement(line) for group in groups for line in group]


@pytest.fixture(scope="module")
def docs_requirements(project):
    return [Requirement(line) for line in project["optional-dependencies"][DOCS]]


def pins_of(text):
    pins = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            pins[canonicalize_name(pin.name)] = pin.specifier
    return pins


@pytest.fixture(scope="module")
def sections(repository):
    """The pins of set-up, and those that the site adds."""
    text = (repository / "constraints.txt").read_text()
    setup, docs = text.split("# What `make docs` adds to that.\n")
    return pins_of(setup), pins_of(docs)


@pytest.fixture(scope="module")
def pinned(sections):
    return sections[0]


@pytest.fixture(scope="module")
def environment(repository):
    return yaml.safe_load((repository / "environment.yml").read_text())["dependencies"]


# Markers are evaluated for the machine of constraints.txt, wherever the test runs.
TESTED = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.0",
    "python_version": "3.11",
    "sys_platform": "linux",
}
WITH_PYTHON = {"pip", "setuptools"}
WITH_TORCH = ("triton", "nvidia-", "cuda-")  # its wheels for CUDA name exact versions of these


def needs(requirement):
    """What an installed package requires, with the extras that `requirement` has of it."""
    for line in importlib.metadata.requires(requirement.name) or ():
        needed = Requirement(line)
        for extra in requirement.extras or {""}:
            if needed.marker is None or needed.marker.evaluate({**TESTED, "extra": extra}):
                yield needed


def closure(requirements):
    """The names of all that installing `requirements` installs on the machine of TESTED."""
    waiting = list(requirements)
    visited = set()  # (name, extras)
    while waiting:
        requirement = waiting.pop()
        place = (canonicalize_name(requirement.name), *sorted(requirement.extras))
        if place not in visited:
            visited.add(place)
            # what another platform lacks is named there too, though not followed further
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                waiting += needs(requirement)
    names = {name for name, *_ in visited} - WITH_PYTHON
    return {name for name in names if not name.startswith(WITH_TORCH)}


def test_conda_lines_are_python_and_pip_and_fit_pyproject(environment, project):
    rattler = pytest.importorskip("rattler")
    specs = [rattler.MatchSpec(line, strict=True) for line in environment if isinstance(line, str)]
    assert [spec.name.normalized for spec in specs] == ["python", "pip"]
    assert str(specs[1].version) in ("None", "*")
    python = str(specs[0].version).strip("=*.")
    assert SpecifierSet(project["requires-python"]).contains(python)


def test_pip_lines_only_point_at_pyproject_and_constraints(environment, project, extras):
    (section,) = [line["pip"] for line in environment if isinstance(line, dict)]
    constraints, editable = section
    assert constraints == "-c constraints.txt"
    assert editable.startswith("-e .[")
    wanted = Requirement(editable.replace("-e .", project["name"])).extras
    assert wanted == set(extras)


def test_make_installs_all_extras_at_the_tested_versions(repository, extras):
    lines = (repository / "Makefile").read_text().splitlines()
    setup, docs = [line for line in lines if "pip install" in line]
    for install in (setup, docs):
        assert "-c constraints.txt" in install
    assert f"-e '.[{','.join(extras)}]'" in setup
    assert f"-e '.[{DOCS}]'" in docs


def test_every_dependency_has_a_lower_bound_and_a_pin_that_satisfies_it(
    requirements, docs_requirements, sections
):
    pinned = sections[0] | sections[1]
    for requirement in requirements + docs_requirements:
        assert [clause.operator for clause in requirement.specifier] == [">="], requirement
        (pin,) = pinned[canonicalize_name(requirement.name)]
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), f"{requirement} is pinned at {pin}"


def test_no_dependency_is_listed_twice(requirements, docs_requirements):
    names = [canonicalize_name(requirement.name) for requirement in requirements]
    names += [canonicalize_name(requirement.name) for requirement in docs_requirements]
    assert sorted(names) == sorted(set(names))


def skip_unless_tested(requirements, pinned):
    for requirement in requirements:  # all are needed to know what they need in turn
        name = canonicalize_name(requirement.name)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed: not all that is pinned is here")
        if not pinned[name].contains(version):
            pytest.skip(f"{name} {version} is not the tested {pinned[name]}: it may need others")


def test_what_set_up_installs_is_pinned_and_nothing_else(requirements, pinned):
    skip_unless_tested(requirements, pinned)
    names = closure(requirements)
    assert sorted(names - set(pinned)) == [], "installed, but in no line of constraints.txt"
    assert sorted(set(pinned) - names) == [], "pinned, but nothing installs it"


def test_what_the_site_adds_is_pinned_and_nothing_else(docs_requirements, requirements, sections):
    setup, docs = sections
    skip_unless_tested(docs_requirements, docs)
    skip_unless_tested(requirements, setup)
    names = closure(docs_requirements) - closure(requirements)
    assert sorted(names - set(docs)) == [], "installed, but in no line of constraints.txt"
    assert sorted(set(docs) - names) == [], "pinned, but nothing of the site installs it"


# Of this version, by whom ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def citation(repository):
    return yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))


def test_what_is_cited_is_this_version(citation, project):
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert isinstance(citation["date-released"], datetime.date)
    assert {"message", "title", "authors"} <= set(citation)


def test_the_paper_is_cited_with_all_its_authors(citation):
    paper = citation["preferred-citation"]
    assert paper["title"] == "Masked Autoencoders Are Effective Tokenizers for Diffusion Models"
    assert [author["family-names"] for author in paper["authors"]] == (
        ["Chen", "Han", "Chen", "Li", "Wang", "Wang", "Wang", "Liu", "Zou", "Raj"]
    )
    assert paper["year"] == 2025
    assert paper["identifiers"][0]["value"] == "arXiv:2502.03444"


def test_the_changelog_begins_with_this_version_and_its_day(repository, citation):
    text = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", text, re.MULTILINE)
    assert versions[0] == (citation["version"], citation["date-released"].isoformat())
    assert versions == sorted(versions, reverse=True)
