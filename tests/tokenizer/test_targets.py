"""HOG is the release's, at every size, and counts orientations where they are."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import mse_loss

from maetok_lab.tokenizer.targets import HogTarget, gaussian_window, hog


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_hog_agrees_with_the_release(repository):
    fixture = load_file(repository / "tests" / "fixtures" / "hog-256.safetensors")
    assert (hog(fixture["images"].float()) - fixture["hog"]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("size", "patch", "cell"),
    [((32, 32), 4, 4), ((48, 32), 16, 8), ((24, 16), 8, 2), ((40, 40), 8, 8)],
)
def test_every_image_size_gets_its_number_of_patches(size, patch, cell):
    target = hog(noise(2, 3, *size), patch, cell)
    assert target.shape == (2, size[0] * size[1] // patch**2, 27 * (patch // cell) ** 2)
    assert target.dtype == torch.float32


def test_a_histogram_has_length_one_and_a_flat_image_none():
    cells = hog(noise(2, 3, 32, 32), 16, 8).unflatten(-1, (3, 9, 4))
    assert torch.allclose(cells.norm(dim=3), torch.ones(2, 4, 3, 4), atol=1e-5)
    assert hog(torch.full((1, 3, 32, 32), 0.3), 16, 8).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("slope", "orientation"), [((1, 0), 4), ((-1, 0), 4), ((0, -1), 0), ((0, 1), 0)]
)
def test_a_ramp_falls_into_the_bin_of_its_orientation(slope, orientation):
    # gx correlates with [1, 0, -1]: a ramp to the right has gx < 0 and phase
    # atan2(gx, 0) = -pi / 2, bin -4.5 -> 4
    x, y = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="xy")
    ramp = ((slope[0] * x + slope[1] * y) / 64).expand(1, 3, 32, 32)
    inner = hog(ramp, 4, 4).unflatten(-1, (3, 9)).view(8, 8, 3, 9)[1:-1, 1:-1]
    assert torch.allclose(inner[..., orientation], torch.ones(6, 6, 3), atol=1e-5)


def test_each_channel_and_cell_has_its_own_place_in_the_patch():
    images = torch.zeros(1, 3, 32, 32)
    images[0, 1, 8:16, 24:32] = noise(8, 8)  # green, lower right cell of the upper right patch
    nonzero = hog(images, 16, 8).view(4, 3, 9, 2, 2).abs().sum(2)
    assert nonzero[1, 1, 1, 1] > 0
    assert nonzero[:, 0].sum() == nonzero[:, 2].sum() == 0
    assert (
        nonzero[2, 1, 1].sum() == 0
    )  # the lower left patch but for its edge with the noisy cell's neighbours


def test_patches_are_independent_but_for_one_pixel_around_them():
    images, changed = noise(1, 3, 32, 32), noise(1, 3, 32, 32)
    changed[:, :, :15, :15] = noise(3, 15, 15, seed=1)
    same = (hog(images, 8, 8) == hog(changed, 8, 8)).all(-1).view(4, 4)
    assert same.tolist() == [[False, False, True, True]] * 2 + [[True] * 4] * 2


def test_the_window_is_a_gaussian_that_sums_to_one():
    window = gaussian_window(16)
    assert window.sum().item() == pytest.approx(1, abs=1e-6)
    assert (window[8, 8] / window[8, 15]).log().item() == pytest.approx(
        0.5 * (7.5**2 - 0.5**2) / 64, rel=1e-4
    )
    assert torch.equal(window, window.flip(0).T)


def test_the_window_is_cropped_where_it_does_not_fit():
    images = noise(1, 3, 40, 40)  # 2.5 windows of 16 px
    whole = torch.nn.functional.pad(images, (0, 8, 0, 8), mode="reflect")
    assert torch.allclose(
        hog(images, 8, 8).view(5, 5, 27), hog(whole, 8, 8).view(6, 6, 27)[:5, :5], atol=1e-5
    )


@pytest.mark.parametrize(
    ("size", "patch", "cell"), [(32, 4, 8), (33, 4, 4), (32, 12, 8), (32, 20, 4)]
)
def test_sizes_that_do_not_divide_are_refused(size, patch, cell):
    with pytest.raises(
        ValueError,
        match=f"patches that divide the image, not {cell}, {patch} and {size} x {size} px",
    ):
        hog(torch.zeros(1, 3, size, size), patch, cell)


def test_the_target_gives_the_width_it_says_and_a_loss_a_patch():
    target, images = HogTarget(8, 4), noise(2, 3, 16, 16)
    expected = target(images)
    assert expected.shape == (2, 4, target.width)
    predicted = noise(2, 4, target.width)
    assert target.loss(predicted, expected).shape == (2, 4)
    assert torch.allclose(target.loss(predicted, expected).mean(), mse_loss(predicted, expected))
    assert target.loss(expected, expected).max() == 0
