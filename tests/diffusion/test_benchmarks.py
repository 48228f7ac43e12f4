"""The benchmark of sampling counts what it says it counts, and what it times is equal output."""

import runpy
from types import SimpleNamespace

import pytest
import torch

from maetok_lab.diffusion.sampling import Guidance

PAPER = Guidance(1.9, 0.0, 0.75)


@pytest.fixture(scope="module")
def sampling(repository) -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        return SimpleNamespace(**runpy.run_path(str(repository / "benchmarks" / "sampling.py")))


class Stub:
    """A velocity that depends on state, time and label."""

    num_classes = 10

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return x_t.sin() * (1 + t)[:, None, None] + labels[:, None, None] / 10


@pytest.fixture
def task() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 2, 1, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 7])


def test_the_papers_image_costs_437_rows_here_500_with_both_passes_and_874_as_the_authors_do(
    sampling, task
):
    model = sampling.Counted(Stub())
    actual = sampling.compare(model, *task, 250, PAPER, repeats=1, tolerance=1e-4)
    assert {row["sampler"]: row["rows an image"] for row in actual} == {
        "ours": "437",
        "ours, recorded": "437",
        "both passes": "500",
        "authors' caller": "874",
    }
    assert [row["rows / ours"] for row in actual] == ["1.00", "1.00", "1.14", "2.00"]


def test_what_is_timed_is_guided_and_equal(sampling, task):
    outputs = {
        name: call(sampling.Counted(Stub()), *task, 40, PAPER)
        for name, call in sampling.CALLERS.items()
    }
    for output in outputs.values():
        assert torch.allclose(output, outputs["ours"], atol=1e-5)
    plain = sampling.ours(sampling.Counted(Stub()), *task, 40, Guidance(1.0))
    assert (plain - outputs["ours"]).abs().max() > 0.1


def test_a_sampler_that_gives_something_else_ends_the_benchmark(sampling, task, monkeypatch):
    monkeypatch.setitem(sampling.CALLERS, "both passes", lambda model, noise, *_: noise)
    with pytest.raises(
        SystemExit,
        match=r"both passes and ours differ by .* standard deviations; 0.0001 is rounding",
    ):
        sampling.compare(sampling.Counted(Stub()), *task, 4, PAPER, repeats=1, tolerance=1e-4)


def test_its_model_hides_nothing_behind_a_zero(sampling):
    model = sampling.make_model("test", torch.device("cpu"))
    x, t = torch.randn(2, model.num_tokens, model.latent_dim), torch.rand(2)
    label, null = (model(x, t, torch.full((2,), y)) for y in (3, model.num_classes))
    assert (label - null).abs().max() > 1e-3 * label.std()
    assert label.std() > 0
