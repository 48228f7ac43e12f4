"""Images to patches and back, in the release's order."""

import pytest
import torch

from maetok_lab.layers.patches import grid_size, patchify, unpatchify


def test_unpatchify_undoes_patchify_on_any_shape():
    images = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(unpatchify(patches, (2, 3), 4), images)


def test_patches_are_row_major_with_the_channel_fastest_inside():
    images = torch.arange(3 * 4 * 6).view(1, 3, 4, 6)
    patches = patchify(images, 2)
    for number, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
        block = images[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert patches[0, number].tolist() == block.permute(1, 2, 0).flatten().tolist()


def test_a_patch_that_does_not_divide_the_image_is_refused():
    assert grid_size(8, 12, 4) == (2, 3)
    with pytest.raises(ValueError, match="patches of 5 px do not divide an image of 8 x 12 px"):
        patchify(torch.zeros(1, 3, 8, 12), 5)
