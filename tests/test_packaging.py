"""What set-up reads: one list of dependencies, one list of tested versions, and nothing that repeats them."""

import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def requirements(project):
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group]


@pytest.fixture(scope="module")
def pinned(repository):
    lines = [
        Requirement(line)
        for line in (repository / "constraints.txt").read_text().splitlines()
        if line
    ]
    return {canonicalize_name(line.name): line.specifier for line in lines}


@pytest.fixture(scope="module")
def environment(repository):
    return yaml.safe_load((repository / "environment.yml").read_text())["dependencies"]


def test_conda_lines_are_python_and_pip_and_fit_pyproject(environment, project):
    rattler = pytest.importorskip("rattler")
    specs = [rattler.MatchSpec(line, strict=True) for line in environment if isinstance(line, str)]
    assert [spec.name.normalized for spec in specs] == ["python", "pip"]
    assert str(specs[1].version) in ("None", "*")
    python = str(specs[0].version).strip("=*.")
    assert SpecifierSet(project["requires-python"]).contains(python)


def test_pip_lines_only_point_at_pyproject_and_constraints(environment, project, repository):
    (section,) = [line["pip"] for line in environment if isinstance(line, dict)]
    constraints, editable = section
    assert constraints == "-c constraints.txt"
    assert editable.startswith("-e .[")
    wanted = Requirement(editable.replace("-e .", project["name"])).extras
    assert wanted == set(project["optional-dependencies"])


def test_make_installs_all_extras_at_the_tested_versions(repository, project):
    install = next(
        line for line in (repository / "Makefile").read_text().splitlines() if "pip install" in line
    )
    assert "-c constraints.txt" in install
    assert f"-e '.[{','.join(project['optional-dependencies'])}]'" in install


def test_every_dependency_has_a_lower_bound_and_a_pin_that_satisfies_it(requirements, pinned):
    for requirement in requirements:
        assert [clause.operator for clause in requirement.specifier] == [">="], requirement
        (pin,) = pinned[canonicalize_name(requirement.name)]
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), f"{requirement} is pinned at {pin}"


def test_no_dependency_is_listed_twice(requirements):
    names = [canonicalize_name(requirement.name) for requirement in requirements]
    assert sorted(names) == sorted(set(names))
