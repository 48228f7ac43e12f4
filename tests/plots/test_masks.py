"""Pictures of masks and predictions show the values that they were given."""

import numpy as np
import pytest
import torch

from maetok_lab.analysis.masks import MaskStudy, ratio_curve
from maetok_lab.pictures import to_uint8
from maetok_lab.plots.masks import (
    HIDDEN,
    component_pictures,
    heat_picture,
    hog_picture,
    masked_picture,
    plot_mask_study,
    plot_ratio_curve,
    plot_ratio_curves,
    plot_token_map,
    target_pictures,
)
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer
from maetok_lab.tokenizer.targets import hog


def stripes(axis):
    """Bright and dark bands along an axis: "across" gives vertical edges."""
    line = torch.tensor([-1.0, -1.0, 1.0, 1.0]).repeat(4)
    square = line.expand(16, 16)
    return (square if axis == "across" else square.T).expand(1, 3, 16, 16)


def study(**changes):
    image = stripes("across")[0]
    empty = {
        "image": image,
        "mask": torch.arange(16) < 5,
        "latents": torch.zeros(4, 2),
        "moved": torch.arange(4.0),
    }
    empty |= {"reconstruction": -image, "error": torch.ones(16, 16), "psnr": 3.0, "perceptual": 0.5}
    target = hog(image[None], 4, 4)[0]
    empty |= {"predictions": {"hog": 0 * target, "semantic": torch.randn(16, 7)}}
    empty |= {"targets": {"hog": target, "semantic": torch.randn(16, 7)}}
    return MaskStudy(**empty | changes)


def test_hidden_patches_are_grey_and_others_untouched():
    image = torch.rand(3, 8, 12) * 2 - 1
    picture = masked_picture(image, torch.tensor([True, False, False, False, False, True]), 4)
    assert (picture[:4, :4] == HIDDEN).all()
    assert (picture[4:, 8:] == HIDDEN).all()
    assert np.array_equal(picture[:4, 4:], to_uint8(image[:, :4, 4:]).movedim(0, -1).numpy())


def test_heat_rises_with_the_value_up_to_its_limit():
    brightness = (
        heat_picture(torch.tensor([[0.0, 0.5, 1.0, 7.0]]), limit=1.0).astype(int).sum(-1)[0]
    )
    assert brightness[0] < brightness[1] < brightness[2] == brightness[3]
    assert (
        heat_picture(torch.tensor([[0.0, 3.0]]))[0, 1].tolist()
        == heat_picture(torch.tensor([[1.0]]))[0, 0].tolist()
    )
    assert heat_picture(torch.zeros(2, 2)).shape == (2, 2, 3)


@pytest.mark.parametrize("axis", ["across", "down"])
def test_strokes_run_along_the_edges(axis):
    drawn = hog_picture(hog(stripes(axis), 8, 4)[0], (2, 2), glyph=16)
    assert drawn.shape == (64, 64, 3)
    glyph = drawn[16:32, 16:32, 0].astype(float)
    down, across = (
        glyph[:, 7:9].sum(),
        glyph[7:9].sum(),
    )  # light along the middle column, and along the middle row
    assert (down > 2 * across) if axis == "across" else (across > 2 * down)


def test_a_glyph_stands_where_its_cell_is():
    descriptors = torch.zeros(4, 27 * 4).view(4, 3, 9, 2, 2)
    descriptors[1, 2, 4, 1, 0] = 1.0  # patch 1 is top right, its cell bottom left
    light = (
        hog_picture(descriptors.flatten(1), (2, 2), glyph=8)[..., 0].reshape(4, 8, 4, 8).sum((1, 3))
    )
    assert np.argwhere(light).tolist() == [[1, 2]]


def test_components_are_the_targets_own_and_show_equal_features_alike():
    target = torch.randn(16, 9, generator=torch.Generator().manual_seed(0))
    same, picture = component_pictures(target, target.clone(), target, grid=(4, 4))
    assert np.array_equal(same, picture)
    assert picture.shape == (4, 4, 3)
    mean = component_pictures(target, target.mean(0).expand(16, 9), grid=(4, 4))[0]
    assert abs(mean.astype(int) - 128).max() <= 1, "the mean is in the middle of every axis"
    with_few = component_pictures(torch.randn(2, 9), torch.randn(2, 9), grid=(1, 2))[0]
    assert with_few.shape == (1, 2, 3)


def test_each_target_is_shown_predicted_and_as_it_should_be():
    pictures = target_pictures(study(), (4, 4))
    assert list(pictures) == [
        "hog: predicted",
        "hog: target",
        "semantic: predicted",
        "semantic: target",
    ]
    assert pictures["hog: predicted"].max() == 0 < pictures["hog: target"].max()


def test_the_study_is_one_figure_with_every_picture_and_the_curve():
    tokenizer = Tokenizer(TOKENIZERS["test"]).eval()
    curve = ratio_curve(tokenizer, torch.rand(3, 3, 32, 32) * 2 - 1, ratios=(0.0, 0.5))
    figure = plot_mask_study(study(), (4, 4), curve=curve)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles[1:3] == ["seen (31% hidden)", "reconstruction, 3.0 dB"]
    assert titles[4:] == [
        "hog: predicted",
        "hog: target",
        "semantic: predicted",
        "semantic: target",
    ]
    lines, bars = figure.axes[-2:]
    assert lines.lines[1].get_xydata().tolist() == [[5 / 16, 3.0]]
    assert [bar.get_height() for bar in bars.patches] == [0, 1, 2, 3]
    assert plot_ratio_curve(curve).lines[0].get_ydata().tolist() == curve["psnr"].tolist()
    assert len(plot_ratio_curves({"random": curve, "block": curve}).axes) == 1, (
        "no panel for a column that is not there"
    )


def test_a_token_map_has_a_row_a_token():
    ax = plot_token_map(torch.arange(6.0).view(2, 3), label="moved")
    assert ax.images[0].get_array().tolist() == [[0, 1, 2], [3, 4, 5]]
