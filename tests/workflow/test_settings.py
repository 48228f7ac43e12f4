"""Settings that few sweeps and examinations change reach what they are for."""

from types import SimpleNamespace

import pandas as pd
import pytest

from maetok_lab.workflow import doctor
from maetok_lab.workflow.doctor import Examination
from maetok_lab.workflow.spec import SweepSpec
from maetok_lab.workflow.sweep import SweepResult


def test_images_are_read_from_the_source_and_at_the_size_that_are_examined(monkeypatch):
    monkeypatch.setattr(doctor, "DATA_SECONDS", 0.01)
    calls = []

    class Source(SimpleNamespace):
        def __len__(self):
            return 100

    def open_images(source, **options):
        calls.append((source, options))
        return Source(batch=lambda indices: None)

    verdict = doctor.check_data(Examination(source="mine", image_size=16), open_images)
    assert calls == [("mine", {"split": "train", "image_size": 16})]
    assert "of mine" in verdict.facts
    assert "at 16 px" in verdict.facts


@pytest.mark.parametrize(("larger", "row"), [(False, 1), (True, 2)])
def test_the_best_entry_is_the_smallest_or_the_largest_of_those_that_are_done(
    tmp_path, larger, row
):
    table = pd.DataFrame({"state": ["failed", "done", "done"], "score": [9.0, 0.1, 0.3]})
    spec = SweepSpec(
        name="toy",
        notebook="toy.ipynb",
        entries=({"a": 1}, {"a": 2}, {"a": 3}),
        quality="score",
        larger_is_better=larger,
    )
    assert SweepResult(tmp_path, table, spec).best.name == row
