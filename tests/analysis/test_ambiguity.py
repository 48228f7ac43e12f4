"""VIV against its integral, white latents, and covariances that are Kronecker products."""

import math

import pytest
import torch
from scipy.integrate import quad

from maetok_lab.analysis.ambiguity import kronecker_eigenvalues, velocity_ambiguity
from maetok_lab.rng import generator


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, "test"), dtype=torch.float64)


def test_i_of_t_integrates_to_viv():
    z = draw(200, 4, 3) * torch.tensor([0.2, 1.0, 3.0])
    labels = torch.arange(200) % 5
    ambiguity = velocity_ambiguity(z + draw(5, 4, 3, seed=1)[labels], labels)
    area, _ = quad(lambda t: float(ambiguity.at(torch.tensor([t]))), 0, 1, epsabs=1e-11, limit=400)
    assert area == pytest.approx(ambiguity.viv, abs=1e-8)


def test_white_latents_of_one_class_have_half_pi_and_keep_all_their_variance():
    ambiguity = velocity_ambiguity(draw(20_000, 2, 3), torch.zeros(20_000, dtype=torch.long))
    assert ambiguity.viv == pytest.approx(math.pi / 2, abs=0.01)
    assert ambiguity.rho == pytest.approx(1, abs=1e-4)


def test_rho_is_the_share_of_the_variance_within_classes():
    labels = torch.arange(4000) % 2
    # classes at -3 and 3, of std 1: nine of ten parts of the variance are between them
    z = draw(4000, 1, 1) + (6.0 * labels - 3)[:, None, None]
    assert velocity_ambiguity(z, labels).rho == pytest.approx(0.1, abs=0.005)


def test_the_eigenvalues_are_those_of_the_kronecker_product():
    over_tokens = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    over_channels = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    left = torch.linalg.cholesky(over_tokens)
    right = torch.linalg.cholesky(over_channels)
    x = left @ draw(40_000, 2, 2) @ right.T
    expected = torch.linalg.eigvalsh(torch.kron(over_tokens, over_channels))
    ours = kronecker_eigenvalues(x - x.mean(dim=0)).sort().values
    torch.testing.assert_close(ours, expected, rtol=0.03, atol=0)


def test_small_classes_are_left_out_and_none_is_refused():
    z = draw(11, 2, 2)
    labels = torch.tensor([0] * 8 + [1] * 3)
    assert len(velocity_ambiguity(z, labels).eigenvalues) == 1
    with pytest.raises(ValueError, match="a class of 4 latents"):
        velocity_ambiguity(z, torch.arange(11))
    with pytest.raises(ValueError, match=r"\(n, N, C\)"):
        velocity_ambiguity(z.flatten(1), labels)
