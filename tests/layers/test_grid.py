"""Rotations keep lengths and know only differences of places; the sine tables are the formula."""

import math

import pytest
import torch

from maetok_lab.layers.grid import (
    AxialRope2d,
    MixedRope2d,
    Rope1d,
    dit_sincos_2d,
    fading_window,
    grid_positions,
    grid_size,
    pad_rotation,
    patchify,
    rotate,
    sincos_1d,
    sincos_2d,
    take_rotation,
    unpatchify,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mixed(depth: int = 2, heads: int = 3, head_dim: int = 16) -> MixedRope2d:
    torch.manual_seed(0)
    return MixedRope2d(depth, heads, head_dim)


def rope_1d(rows: torch.Tensor, columns: torch.Tensor):
    return [Rope1d(16)(rows)]


ROPES = {"axial": lambda: AxialRope2d(2, 3, 16), "mixed": mixed, "1d": lambda: rope_1d}
each_rope = pytest.mark.parametrize("make", ROPES.values(), ids=ROPES)


@each_rope
def test_a_rotation_keeps_the_length_of_every_pair(make):
    x = noise(2, 3, 12, 16)
    turned = rotate(x, make()(*grid_positions(3, 4))[0])
    assert torch.allclose(
        turned.unflatten(-1, (-1, 2)).norm(dim=-1), x.unflatten(-1, (-1, 2)).norm(dim=-1), atol=1e-5
    )
    assert not torch.allclose(turned[:, :, 1:], x[:, :, 1:], atol=0.1)


@each_rope
def test_attention_scores_depend_on_the_difference_of_places_only(make):
    q, k = noise(1, 3, 12, 16), noise(1, 3, 12, 16, seed=1)
    rows, columns = grid_positions(3, 4)
    rope = make()

    def scores(down: int, right: int) -> torch.Tensor:
        rotation = rope(rows + down, columns + right)[-1]
        return rotate(q, rotation) @ rotate(k, rotation).transpose(-1, -2)

    assert torch.allclose(scores(0, 0), scores(5, 3), atol=1e-4)
    plain = q @ k.transpose(-1, -2)
    assert not torch.allclose(scores(0, 0), plain, atol=0.1)


def test_adjacent_channels_turn_as_a_complex_number():
    x, angle = noise(1, 1, 3, 2), torch.tensor([0.3, -1.0, 2.0])[None, :, None]
    turned = torch.view_as_complex(x) * torch.polar(torch.ones(3), angle[0, :, 0])
    assert torch.allclose(
        torch.view_as_complex(rotate(x, (angle.cos(), angle.sin()))), turned, atol=1e-6
    )


def test_bf16_is_rotated_in_float32_and_comes_back_as_bf16():
    x, rotation = noise(1, 3, 12, 16), AxialRope2d(1, 3, 16)(*grid_positions(3, 4))[0]
    turned = rotate(x.bfloat16(), rotation)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.bfloat16().float(), rotation).bfloat16())


def test_axial_pairs_turn_with_the_column_first_and_the_row_after():
    cos, sin = AxialRope2d(1, 2, 8, theta=10.0)(torch.tensor([2.0]), torch.tensor([3.0]))[0]
    magnitudes = [1.0, 10**-0.5]
    expected = torch.tensor([3 * m for m in magnitudes] + [2 * m for m in magnitudes])
    assert cos.shape == (1, 1, 4)
    assert torch.allclose(cos[0, 0], expected.cos(), atol=1e-6)
    assert torch.allclose(sin[0, 0], expected.sin(), atol=1e-6)


def test_mixed_rope_starts_as_the_release_says_one_angle_a_head():
    rope = mixed(depth=2, heads=3, head_dim=8)
    f_x, f_y = rope.freqs.detach().unflatten(-1, (3, 4))  # (depth, heads, pairs)
    angle = torch.atan2(f_y[..., 0], f_x[..., 0])
    for i, m in enumerate([1.0, 10**-0.5]):
        assert torch.allclose(f_x[..., i], m * angle.cos(), atol=1e-6)
        assert torch.allclose(f_y[..., i], m * angle.sin(), atol=1e-6)
        assert torch.allclose(f_x[..., 2 + i], m * (angle + math.pi / 2).cos(), atol=1e-6)
        assert torch.allclose(f_y[..., 2 + i], m * (angle + math.pi / 2).sin(), atol=1e-6)
    assert len(angle.flatten().unique()) == 6
    cos, sin = rope(torch.tensor([2.0]), torch.tensor([3.0]))[1]
    assert torch.allclose(cos[:, 0], (3 * f_x[1] + 2 * f_y[1]).cos(), atol=1e-5)
    assert torch.allclose(sin[:, 0], (3 * f_x[1] + 2 * f_y[1]).sin(), atol=1e-5)


def test_mixed_rope_learns():
    rope = mixed()
    rotate(noise(1, 3, 12, 16), rope(*grid_positions(3, 4))[1])[..., 0].sum().backward()
    assert rope.freqs.grad[:, 1].abs().sum() > 0
    assert rope.freqs.grad[:, 0].abs().sum() == 0


def test_tokens_around_the_grid_do_not_turn():
    x = noise(1, 3, 17, 16)
    for rope in (AxialRope2d(1, 3, 16), mixed()):
        rotation = rope(*grid_positions(3, 4))[0]
        turned = rotate(x, pad_rotation(rotation, 1, 4))
        assert torch.equal(turned[:, :, :1], x[:, :, :1])
        assert torch.equal(turned[:, :, 13:], x[:, :, 13:])
        assert torch.equal(turned[:, :, 1:13], rotate(x[:, :, 1:13], rotation))


def test_taking_tokens_and_rotating_commute():
    x = noise(2, 3, 12, 16)
    index = torch.tensor([[0, 3, 7], [11, 2, 5]])
    for rope in (AxialRope2d(1, 3, 16), mixed()):
        rotation = rope(*grid_positions(3, 4))[0]
        selection = torch.take_along_dim(x, index[:, None, :, None], dim=2)
        expected = torch.take_along_dim(rotate(x, rotation), index[:, None, :, None], dim=2)
        actual = rotate(selection, take_rotation(rotation, index))
        assert torch.allclose(actual, expected, atol=1e-6)


def test_sines_are_the_formula_sine_at_even_and_cosine_at_odd_channels():
    table = sincos_1d(torch.arange(5), 6)
    for position in range(5):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert table.dtype == torch.float32


def test_two_dimensional_sines_are_the_rows_beside_the_columns():
    rows, columns = grid_positions(2, 3)
    assert rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert columns.tolist() == [0, 1, 2, 0, 1, 2]
    table = sincos_2d(rows, columns, 8)
    assert torch.equal(table[:, :4], sincos_1d(rows, 4, base=100.0))
    assert torch.equal(table[:, 4:], sincos_1d(columns, 4, base=100.0))


def test_dits_sines_are_those_of_the_column_and_then_of_the_row():
    table = dit_sincos_2d(*grid_positions(3, 3), 8)
    angles = [torch.tensor([1.0, 0.01]), torch.tensor([2.0, 0.02])]  # column 1, row 2
    expected = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())])
    assert torch.allclose(table[2 * 3 + 1], expected, atol=1e-6)


@pytest.mark.parametrize("rope", [AxialRope2d, MixedRope2d])
def test_a_head_width_that_does_not_split_in_four_is_refused(rope):
    with pytest.raises(ValueError, match="2-D RoPE needs a head width divisible by 4, not 6"):
        rope(1, 2, 6)


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


@pytest.mark.parametrize(("patch_size", "overlap"), [(8, 4), (8, 2), (4, 1)])
def test_overlapping_patches_of_one_colour_make_an_image_of_it_up_to_its_edges(patch_size, overlap):
    side = patch_size + 2 * overlap
    colours = torch.tensor([0.7, -0.2, 0.1]).repeat(side**2)  # the channel is fastest
    images = unpatchify(colours.expand(2, 6, -1), (2, 3), patch_size, overlap=overlap)
    expected = torch.tensor([0.7, -0.2, 0.1]).view(3, 1, 1).expand(2, 3, 2 * patch_size, -1)
    expected = expected.expand(2, 3, 2 * patch_size, 3 * patch_size)
    torch.testing.assert_close(images, expected)


def test_a_patch_is_faded_into_its_neighbours_and_whole_in_its_middle():
    patch = torch.zeros(1, 9, 12, 12, 3)
    patch[:, 4] = 1.0  # the middle one of 3 x 3 patches
    images = unpatchify(patch.flatten(2), (3, 3), 8, overlap=2)
    assert (images[:, :, 10:14, 10:14] == 1).all()
    assert images[:, :, 6:18, 6:18].min() > 0
    outside = images.clone()
    outside[:, :, 6:18, 6:18] = 0
    assert (outside == 0).all()
    window = fading_window(8, 2)
    torch.testing.assert_close(images[0, 0, 6:18, 6:18], window)
    torch.testing.assert_close(window[:4] + window[8:], window[4:5].expand(4, -1))
