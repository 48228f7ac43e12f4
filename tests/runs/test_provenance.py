"""A result says what made it."""

import datetime
import json
import subprocess

import torch

from maetok_lab.runs import provenance as provenance_module
from maetok_lab.runs.provenance import now, provenance


def test_provenance_names_versions_platform_and_start_as_plain_json():
    record = json.loads(json.dumps(provenance()))
    assert record["packages"]["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(record["started"])
    assert abs(age) < datetime.timedelta(seconds=60)


def test_the_commit_is_the_checkouts_and_null_without_git(monkeypatch, repository):
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert provenance()["commit"] == (head.stdout.strip() if head.returncode == 0 else None)

    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance_module.subprocess, "run", no_git)
    assert provenance()["commit"] is None
    assert provenance()["dirty"] is False


def test_a_package_that_is_not_there_has_no_version():
    assert provenance_module._version("surely-not-installed") is None
    assert now().endswith("+00:00")
