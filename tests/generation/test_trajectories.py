"""The way of a sampling ends where sampling ends."""

import pytest
import torch

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.model import DIFFUSION, DiffusionTransformer
from maetok_lab.diffusion.sampling import Guidance, draw_noise
from maetok_lab.generation.images import generate
from maetok_lab.generation.trajectories import decode_point, trajectory
from maetok_lab.rng import seeds_for
from maetok_lab.tokenizer.foreign import RawPixels


@pytest.mark.parametrize("method", ["euler", "heun", "euler_maruyama"])
def test_the_last_point_is_what_generate_gives(method):
    tokenizer = RawPixels(8)
    torch.manual_seed(0)
    model = DiffusionTransformer(
        DIFFUSION["test"], num_tokens=4, latent_dim=48, num_classes=3
    ).eval()
    for parameter in model.parameters():  # a fresh model's velocity is zero
        torch.nn.init.normal_(parameter, std=0.1)
    model.tokenizer_fingerprint, model.trained_path = tokenizer.fingerprint, "linear"
    space = LatentSpace(tokenizer.fingerprint, torch.tensor(0.1), torch.tensor(0.7))
    labels, sampling = (
        torch.tensor([0, 1, 2, 3]),
        {"num_steps": 4, "method": method, "guidance": Guidance(2.0, 0.0, 0.8)},
    )
    points = list(trajectory(model, labels, seed=5, **sampling))
    expected = generate(model, tokenizer, space, labels, seed=5, **sampling)
    torch.testing.assert_close(decode_point(points[-1], tokenizer, space, show="state"), expected)
    assert [point.step for point in points] == [0, 1, 2, 3, 4]
    assert (points[0].t, points[-1].t) == (1.0, 0.0)
    assert torch.equal(points[0].state, draw_noise(seeds_for(5, 4), 4, 48))
    last = points[-2]
    assert not torch.equal(
        decode_point(last, tokenizer, space), decode_point(last, tokenizer, space, show="state")
    )
