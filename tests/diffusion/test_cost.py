"""Costs are counted beforehand: FLOPs as torch counts them, model rows as samplers ask for them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from maetok_lab.diffusion.cost import SamplingCost, SamplingProgress, flops, sampling_cost
from maetok_lab.diffusion.model import DIFFUSION, DiffusionConfig, DiffusionTransformer
from maetok_lab.diffusion.sampling import Guidance, sample

PAPER = Guidance(1.9, 0.0, 0.75)


def counted(name: str, num_tokens: int, latent_dim: int) -> int:
    """What torch counts in one sample's forward pass, on the meta device: nothing is computed."""
    with torch.device("meta"):
        model = DiffusionTransformer(
            DIFFUSION[name], num_tokens=num_tokens, latent_dim=latent_dim, num_classes=1000
        )
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(
                torch.empty(1, num_tokens, latent_dim),
                torch.empty(1),
                torch.zeros(1, dtype=torch.long),
            )
    return counter.get_total_flops()


@pytest.mark.parametrize("name", DIFFUSION)
def test_the_closed_form_is_torchs_count(name):
    for num_tokens, latent_dim in ((128, 32), (1024, 32), (16, 16)):
        actual = flops(DIFFUSION[name], num_tokens, latent_dim=latent_dim)
        assert actual == pytest.approx(counted(name, num_tokens, latent_dim), rel=0.02)
    assert flops(DIFFUSION[name], 128) == flops(DIFFUSION[name], 128, latent_dim=32)


def test_sit_xl_costs_what_the_issue_of_the_papers_figures_says():
    short, long = (flops(DIFFUSION["sit-xl"], tokens) / 1e9 for tokens in (128, 1024))
    assert short == pytest.approx(116.7, abs=0.1)
    assert long == pytest.approx(1049, abs=1)
    assert long / short == pytest.approx(9.0, abs=0.05)


class Counting(torch.nn.Module):
    """A small model that counts the rows it is asked for."""

    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.inner = DiffusionTransformer(
            DiffusionConfig(width=8, depth=1, num_heads=2),
            num_tokens=4,
            latent_dim=2,
            num_classes=num_classes,
        )
        self.rows = 0

    def __getattr__(self, name):
        return (
            super().__getattr__(name)
            if name in ("inner", "rows")
            else getattr(super().__getattr__("inner"), name)
        )

    def forward(self, x_t, t, labels):
        self.rows += len(x_t)
        return self.inner(x_t, t, labels)


@pytest.mark.parametrize("method", ["euler", "heun", "euler_maruyama"])
@pytest.mark.parametrize("guidance", [None, Guidance(1.0), PAPER, Guidance(2.0, 0.3, 0.6)])
@pytest.mark.parametrize("extra", [{}, {"time_shift": 2.5}, {"weak": True}, {"start": 0.7}])
def test_rows_are_counted_as_the_samplers_will_ask_for_them(method, guidance, extra):
    model, weak = Counting(), Counting()
    if not extra:
        model.inner.trained_shift = 2.5
    options = {"method": method, "num_steps": 9, "guidance": guidance}
    options |= {"weak_model": weak} if "weak" in extra else extra
    cost = sampling_cost(model, 2, **options)
    sample(model, torch.randn(2, 4, 2), torch.tensor([0, 2]), seeds=[1, 2], **options)
    assert (model.rows, weak.rows) == (2 * cost.rows, 2 * cost.weak_rows)
    each = flops(model.config, 4, latent_dim=2) / 1e9
    assert cost.gflop == pytest.approx((cost.rows + cost.weak_rows) * each)


def test_the_papers_setting_is_said_before_it_starts():
    with torch.device("meta"):
        model = DiffusionTransformer(
            DIFFUSION["sit-xl"], num_tokens=128, latent_dim=32, num_classes=1000
        )
    cost = sampling_cost(model, 50_000, num_steps=250, guidance=PAPER)
    assert cost.rows == 437
    assert cost.describe() == "50,000 images: 437 model rows an image, 51,015.1 GFLOP each"
    assert sampling_cost(model, 1, num_steps=250, guidance=Guidance(1.9)).rows == 500
    auto = sampling_cost(model, 8, num_steps=250, guidance=PAPER, weak_model=model)
    assert auto.describe().startswith(
        "8 images: 250 model rows and 187 of the weaker model an image"
    )
    free = sampling_cost(model, 8, method="dopri5", num_steps=5)
    assert (
        free.describe() == "8 images with dopri5: the number of model rows is only known afterwards"
    )


def test_progress_says_the_cost_then_speed_and_time_left_after_the_first_batch_and_at_the_end(
    monkeypatch,
):
    clock = iter([0.0, 2.0, 4.0, 6.0])
    monkeypatch.setattr("maetok_lab.diffusion.cost.time.monotonic", lambda: next(clock))
    said = []
    progress = SamplingProgress(SamplingCost(30, 10, 0, 1.5), write=said.append)
    for count in (10, 20, 30):
        progress.update(count)
    assert said == [
        "30 images: 10 model rows an image, 1.5 GFLOP each",
        "10 of 30 images; 5 images/s, 4 s left",
        "30 of 30 images; 5 images/s, 0 s left",
    ]
