"""What the tests of both trainings share."""

import pytest
import torch

from maetok_lab.runs import Run


@pytest.fixture(scope="session")
def assert_same_end():
    """`assert_same_end(run, other)`: every tensor of their newest checkpoints is the same, and every logged number."""

    def compare(first: Run, second: Run) -> None:
        mine, theirs = Run(first.folder).load_checkpoint(), Run(second.folder).load_checkpoint()
        assert (mine.step, mine.state) == (theirs.step, theirs.state)
        assert {g: sorted(t) for g, t in mine.tensors.items()} == {g: sorted(t) for g, t in theirs.tensors.items()}
        for group, tensors in mine.tensors.items():
            for name, value in tensors.items():
                assert torch.equal(value, theirs.tensors[group][name]), f"{group} {name}"
        assert (first.folder / "metrics.jsonl").read_text() == (second.folder / "metrics.jsonl").read_text()

    return compare
