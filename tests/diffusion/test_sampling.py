"""The samplers solve their equations, guide where they should, and compute nothing in vain."""

import sys

import pytest
import torch

from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer
from maetok_lab.diffusion.sampling import Guidance, draw_noise, sample, sample_steps, time_grid
from maetok_lab.rng import seeds_for


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Pull:
    """A velocity that depends on the state and the time."""

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return x_t.sin() * (1 + t)[:, None, None] + x_t


class Rows:
    """A model whose velocity is its label (null: -1), which counts the rows it is asked for."""

    num_classes = 10

    def __init__(self):
        self.rows, self.calls = 0, []

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert len(x_t) == len(t) == len(labels)
        self.rows += len(x_t)
        self.calls.append((len(x_t), t[0].item()))
        values = torch.where(labels == self.num_classes, -1, labels).float()
        return values[:, None, None].expand_as(x_t)


# The calling convention ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["euler", "heun", "euler_maruyama", "dopri5"])
def test_the_trajectory_ends_where_sample_ends(method):
    z, labels = noise(3, 1, 2), torch.zeros(3, dtype=torch.long)
    options = {"method": method, "num_steps": 5}
    if method == "euler_maruyama":
        options["seeds"] = [1, 2, 3]
    steps = list(sample_steps(Pull(), z, labels, **options))
    assert [s.step for s in steps] == [1, 2, 3, 4, 5]
    times = (
        [0.76, 0.52, 0.28, 0.04, 0.0] if method == "euler_maruyama" else [0.8, 0.6, 0.4, 0.2, 0.0]
    )
    assert [s.t for s in steps] == pytest.approx(times)
    assert steps[0].x.dtype == torch.float64
    last = sample(Pull(), z, labels, **options)
    assert last.dtype == torch.float32
    assert torch.equal(last, steps[-1].x.float())


def test_sampling_keeps_no_gradients_and_shows_the_model_float32():
    model = Rows()
    dtypes = []
    latents = sample(
        lambda x_t, t, y: dtypes.append((x_t.dtype, t.dtype)) or model(x_t, t, y),
        noise(2, 1, 2).requires_grad_(),
        torch.zeros(2, dtype=torch.long),
        num_steps=2,
    )
    assert set(dtypes) == {(torch.float32, torch.float32)}
    assert not latents.requires_grad


def test_a_shift_above_one_spends_more_steps_near_the_noise():
    assert time_grid("euler", 4, 3.0).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert time_grid("euler", 4, 1 / 3).tolist() == pytest.approx([1, 0.5, 0.25, 0.1, 0])
    for method in ("euler", "euler_maruyama"):
        assert torch.equal(time_grid(method, 7), time_grid(method, 7, 1.0))
    z, labels = noise(2, 1, 1), torch.tensor([1, 2])
    model = Rows()
    sample(model, z, labels, num_steps=4, time_shift=3.0)
    assert [t for _, t in model.calls] == pytest.approx([1, 0.9, 0.75, 0.5])
    with pytest.raises(ValueError, match=r"time_shift must be above 0 \(1 is none\), not 0"):
        sample(model, z, labels, num_steps=4, time_shift=0.0)


def test_dopri5_stays_between_zero_and_one_and_lands_on_the_ends_of_guidance():
    model = Rows()
    latents = sample(
        model,
        torch.zeros(1, 1, 1),
        torch.tensor([2]),
        method="dopri5",
        num_steps=3,
        guidance=Guidance(3.0, 0.3, 0.7),
    )
    assert all(0 <= t <= 1 for _, t in model.calls)
    assert latents.item() == pytest.approx(
        -(2 * 0.6 + 8 * 0.4), abs=1e-6
    )  # exact, in spite of the two jumps
    assert {rows for rows, t in model.calls if 0.31 < t < 0.69} == {2}
    assert {rows for rows, t in model.calls if t < 0.29 or t > 0.71} == {1}


def test_a_model_may_bring_the_path_it_was_trained_on():
    model, z = Pull(), noise(8, 1, 2)
    options = {"method": "euler_maruyama", "num_steps": 6, "seeds": range(8)}
    cosine, linear = (
        sample(model, z, torch.zeros(8), path=path, **options) for path in ("cosine", "linear")
    )
    assert torch.equal(sample(model, z, torch.zeros(8), **options), linear)
    model.trained_path = "cosine"
    assert torch.equal(sample(model, z, torch.zeros(8), **options), cosine)
    assert torch.equal(sample(model, z, torch.zeros(8), path="linear", **options), linear)


# Guidance -----------------------------------------------------------------------------------------


def test_guidance_extrapolates_from_the_null_velocity_inside_its_interval_only():
    labels, z = torch.tensor([2, 5]), torch.zeros(2, 1, 1)
    plain = sample(Rows(), z, labels, num_steps=8)
    assert plain.flatten().tolist() == [-2, -5]  # from t = 1 to 0 a constant velocity v moves by -v
    guided = sample(Rows(), z, labels, num_steps=8, guidance=Guidance(3.0, 0.25, 0.5))
    # v = -1 + 3 (label + 1) = 3 label + 2 at t = 0.5, 0.375 and 0.25: three of eight steps
    assert guided.flatten().tolist() == [-(5 * 2 + 3 * 8) / 8, -(5 * 5 + 3 * 17) / 8]


@pytest.mark.parametrize("method", ["euler", "heun", "euler_maruyama", "dopri5"])
def test_guidance_of_scale_one_is_no_guidance_and_costs_nothing(method):
    labels, z = torch.tensor([2, 5]), noise(2, 1, 1)
    options = {"method": method, "num_steps": 6} | (
        {"seeds": [1, 2]} if method == "euler_maruyama" else {}
    )
    free, one = Rows(), Rows()
    assert torch.equal(
        sample(free, z, labels, **options),
        sample(one, z, labels, guidance=Guidance(1.0), **options),
    )
    assert free.rows == one.rows


def test_exactly_b_rows_a_step_outside_the_interval_and_twice_as_many_inside():
    model = Rows()
    sample(
        model,
        noise(3, 1, 1),
        torch.tensor([1, 2, 3]),
        num_steps=20,
        guidance=Guidance(1.9, 0.25, 0.75),
    )
    assert len(model.calls) == 20
    for rows, t in model.calls:
        assert rows == (6 if 0.25 <= round(t, 6) <= 0.75 else 3)
    assert [rows for rows, _ in model.calls].count(6) == 11


def test_the_papers_setting_costs_437_rows_an_image():
    for high, rows in ((0.75, 437), (1.0, 500), (None, 250)):
        model = Rows()
        guidance = None if high is None else Guidance(1.9, 0.0, high)
        sample(model, noise(2, 1, 1), torch.tensor([1, 2]), num_steps=250, guidance=guidance)
        assert model.rows == 2 * rows


def test_heun_guides_both_evaluations_of_a_step_by_the_steps_first_time():
    model = Rows()
    sample(
        model,
        noise(3, 1, 1),
        torch.tensor([1, 2, 3]),
        method="heun",
        num_steps=4,
        guidance=Guidance(2.0, 0.4, 0.8),
    )
    # steps begin at 1, 0.75, 0.5 and 0.25; the last one has one evaluation
    assert model.calls == [(3, 1), (3, 0.75), (6, 0.75), (6, 0.5), (6, 0.5), (6, 0.25), (3, 0.25)]


def test_autoguidance_extrapolates_from_a_weaker_model_with_the_same_labels():
    strong, weak = Rows(), Rows()

    def weaker(x_t, t, labels):
        return weak(x_t, t, labels) / 2

    latents = sample(
        strong,
        torch.zeros(2, 1, 1),
        torch.tensor([2, 6]),
        num_steps=4,
        weak_model=weaker,
        guidance=Guidance(3.0, 0, 0.5),
    )
    # v = label / 2 + 3 (label - label / 2) = 2 label at t = 0.5 and 0.25
    assert latents.flatten().tolist() == [-(2 * 2 + 2 * 4) / 4, -(2 * 6 + 2 * 12) / 4]
    assert strong.calls == [(2, 1), (2, 0.75), (2, 0.5), (2, 0.25)]
    assert weak.calls == [(2, 0.5), (2, 0.25)]


def test_a_weak_model_changes_nothing_at_scale_one_or_where_it_is_the_model_itself():
    torch.manual_seed(0)
    sizes = {"num_tokens": 4, "latent_dim": 3, "num_classes": 2}
    config = DiffusionConfig(width=16, depth=1, num_heads=2)
    strong, weak = (DiffusionTransformer(config, **sizes).eval() for _ in range(2))
    for parameter in [*strong.parameters(), *weak.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    request = (strong, noise(2, 4, 3), torch.tensor([0, 1]))
    for method in ("euler", "heun", "euler_maruyama"):
        options = {"num_steps": 4, "method": method, "seeds": [0, 1]}
        plain = sample(*request, **options)
        assert torch.equal(
            sample(*request, **options, weak_model=weak, guidance=Guidance(1.0)), plain
        )
        assert torch.equal(sample(*request, **options, weak_model=weak), plain)
        itself = sample(*request, **options, weak_model=strong, guidance=Guidance(3.0))
        assert torch.allclose(itself, plain, atol=1e-5)
        guided = sample(*request, **options, weak_model=weak, guidance=Guidance(3.0))
        assert not torch.allclose(guided, plain, atol=1e-2)
    # what cannot guide is refused before anything is computed
    weak.trained_path = "cosine"
    with pytest.raises(ValueError, match=r"must have the model's path: they have \['cosine', 'lin"):
        sample(*request, num_steps=4, weak_model=weak, guidance=Guidance(3.0))
    smaller = DiffusionTransformer(config, **sizes | {"num_classes": 0})
    with pytest.raises(ValueError, match=r"labels must be in 0 .. 0 \(0 is the null class\)"):
        sample(*request, num_steps=4, weak_model=smaller, guidance=Guidance(3.0))


def test_an_unconditional_model_is_sampled_with_its_null_label_and_guided_by_a_weaker_model_only():
    torch.manual_seed(0)
    sizes = {"num_tokens": 4, "latent_dim": 3, "num_classes": 0}
    strong, weak = (
        DiffusionTransformer(DiffusionConfig(width=16, depth=d, num_heads=2), **sizes)
        for d in (2, 1)
    )
    for parameter in [*strong.parameters(), *weak.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    z, null = noise(2, 4, 3), torch.zeros(2, dtype=torch.long)
    plain = sample(strong, z, null, num_steps=4)
    guided = sample(strong, z, null, num_steps=4, weak_model=weak, guidance=Guidance(2.0))
    assert not torch.allclose(plain, guided, atol=1e-3)
    with pytest.raises(
        ValueError,
        match="an unconditional model has no labels to be guided by; it can be guided by a weak",
    ):
        sample(strong, z, null, num_steps=4, guidance=Guidance(2.0))
    with pytest.raises(
        ValueError, match=r"labels must be in 0 .. 0 \(0 is the null class\), not 0 .. 1"
    ):
        sample(strong, z, torch.tensor([0, 1]), num_steps=4)


# Seeds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["euler", "euler_maruyama"])
def test_image_k_does_not_depend_on_the_batch_around_it(method):
    torch.manual_seed(0)
    config = DiffusionConfig(width=16, depth=1, num_heads=2)
    model = DiffusionTransformer(config, num_tokens=4, latent_dim=3, num_classes=5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    labels = torch.tensor([4, 2, 0, 1, 3])

    def run(rows: slice) -> torch.Tensor:
        seeds = seeds_for(0, 5)[rows]
        z = draw_noise(seeds, 4, 3)
        guidance = Guidance(1.5, 0.0, 0.75)
        return sample(
            model, z, labels[rows], method=method, num_steps=6, seeds=seeds, guidance=guidance
        )

    together = run(slice(0, 5))
    apart = torch.cat([run(slice(0, 2)), run(slice(2, 3)), run(slice(3, 5))])
    assert torch.allclose(together, apart, atol=1e-5)
    assert (torch.cdist(together.flatten(1), together.flatten(1)) + 9 * torch.eye(5)).min() > 0.1


def test_noise_belongs_to_its_seed():
    assert torch.equal(draw_noise([3, 1, 2], 4, 2)[1:], draw_noise([1, 2], 4, 2))
    assert draw_noise(range(500), 4, 2).std().item() == pytest.approx(1, abs=0.05)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.8, 0.2), (-0.1, 0.5), (0.5, 1.1)])
def test_an_interval_that_is_none_is_refused(low, high):
    with pytest.raises(
        ValueError, match=rf"guidance needs 0 <= low <= high <= 1, not low {low}, high {high}"
    ):
        Guidance(1.5, low, high)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 11], {}, r"labels must be in 0 .. 10 \(10 is the null class\), not 0 .. 11"),
        ([-1, 3], {}, r"labels must be in 0 .. 10 \(10 is the null class\), not -1 .. 3"),
        ([1], {}, r"need one label a sample, not labels \(1,\) for noise \(2, 1, 1\)"),
        ([1, 2], {"num_steps": 0}, "num_steps must be at least 1, not 0"),
        ([1, 2], {"method": "huen"}, r"unknown sampler 'huen'; did you mean 'heun'\?"),
        ([1, 2], {"path": "cosin"}, r"unknown path 'cosin'; did you mean 'cosine'\?"),
        (
            [1, 2],
            {"method": "euler_maruyama"},
            r"euler_maruyama needs one seed a sample \(seeds\), or its noise",
        ),
        (
            [1, 2],
            {"method": "euler_maruyama", "seeds": [1]},
            "needs one seed a sample .* 1 seeds came for 2 samples",
        ),
        (
            [1, 2],
            {"method": "euler_maruyama", "sde_noise": torch.zeros(4, 2, 1, 1)},
            r"sde_noise must be \(3, 2, 1, 1\), not \(4, 2, 1, 1\)",
        ),
    ],
)
def test_what_cannot_be_sampled_is_one_clear_line(labels, options, message):
    with pytest.raises(ValueError, match=message):
        sample(Rows(), torch.zeros(2, 1, 1), torch.tensor(labels), **{"num_steps": 4} | options)


def test_noise_of_another_size_than_the_models_is_refused():
    config = DiffusionConfig(width=16, depth=1, num_heads=2)
    model = DiffusionTransformer(config, num_tokens=4, latent_dim=3, num_classes=5)
    with pytest.raises(ValueError, match=r"noise must be \(B, 4, 3\), not \(1, 5, 3\)"):
        sample(model, noise(1, 5, 3), torch.tensor([0]), num_steps=1)


def test_the_null_label_may_be_asked_for():
    assert sample(Rows(), torch.zeros(1, 1, 1), torch.tensor([10]), num_steps=2).item() == 1


def test_dopri5_says_which_package_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(
        ImportError, match=r"sampler needs torchdiffeq: pip install 'maetok-lab\[evaluation\]'"
    ):
        sample(Rows(), torch.zeros(1, 1, 1), torch.tensor([1]), method="dopri5", num_steps=2)


# Shift and start ----------------------------------------------------------------------------------


def test_a_model_may_bring_the_shift_it_was_trained_with():
    model, z = Pull(), noise(3, 1, 2)
    plain, shifted = (
        sample(model, z, torch.zeros(3), num_steps=6, time_shift=s) for s in (1.0, 3.0)
    )
    assert torch.equal(sample(model, z, torch.zeros(3), num_steps=6), plain)
    model.trained_shift = 3.0
    assert torch.equal(sample(model, z, torch.zeros(3), num_steps=6), shifted)
    assert torch.equal(sample(model, z, torch.zeros(3), num_steps=6, time_shift=1.0), plain)
    assert not torch.allclose(plain, shifted, atol=1e-3)


def test_a_start_at_noise_has_the_times_of_before_and_a_later_one_begins_there():
    for method in ("euler", "euler_maruyama"):
        for shift in (1.0, 0.3, 7.7):
            assert torch.equal(time_grid(method, 9, shift, 1.0), time_grid(method, 9, shift))
            for start in (0.06, 0.5, 0.99):
                times = time_grid("euler", 9, shift, start)
                assert times[0].item() == pytest.approx(start, abs=1e-12)
                assert times[-1] == 0
                assert (times.diff() < 0).all()
    assert time_grid("heun", 4, start=0.8).tolist() == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])
    grid = time_grid("euler_maruyama", 3, start=0.44)
    assert grid.tolist() == pytest.approx([0.44, 0.24, 0.04, 0])
    # equal steps before the shift, as from noise
    shifted = time_grid("euler", 4, 3.0, 0.9)
    unshifted = shifted / (3 - 2 * shifted)
    assert unshifted.diff().tolist() == pytest.approx([-0.1875] * 4)


@pytest.mark.parametrize("method", ["euler", "heun", "euler_maruyama", "dopri5"])
def test_latents_on_their_way_are_led_to_the_end(method):
    model = Rows()
    labels = torch.tensor([2, 5])
    options = {"method": method, "num_steps": 4, "start": 0.5, "seeds": [1, 2]}
    z = noise(2, 1, 1)
    steps = list(sample_steps(model, z, labels, **options))
    assert max(t for _, t in model.calls) == pytest.approx(0.5)
    assert steps[-1].t == 0
    if method != "euler_maruyama":  # v = label for half of the time
        expected = z.double() - labels[:, None, None] / 2
        assert torch.allclose(steps[-1].x, expected, atol=1e-6)


@pytest.mark.parametrize("start", [0, -0.5, 1.01, float("nan")])
def test_a_start_that_is_none_is_refused(start):
    with pytest.raises(ValueError, match=rf"must start in \(0, 1\], 1 being noise, not at {start}"):
        sample(Rows(), torch.zeros(1, 1, 1), torch.tensor([1]), num_steps=2, start=start)


def test_euler_maruyama_cannot_start_where_its_noise_has_ended():
    options = {"method": "euler_maruyama", "num_steps": 2, "seeds": [1]}
    with pytest.raises(ValueError, match=r"no noise below t = 0.04 .* cannot start at 0.04: start"):
        sample(Rows(), torch.zeros(1, 1, 1), torch.tensor([1]), start=0.04, **options)
