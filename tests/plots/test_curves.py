"""Loss curves: what is drawn, with which colours, and into which axes."""

import pandas as pd
import pytest
from matplotlib import pyplot

from maetok_lab.plots.curves import PALETTE, colours_for, plot_losses


def metrics():
    train = [
        {"step": s, "images": 8 * s, "split": "train", "loss": 1 / s, "loss/hog": 0.5 / s}
        for s in range(1, 30)
    ]
    return pd.DataFrame(
        [*train, {"step": 10, "images": 80, "split": "val", "loss": 0.2, "psnr": 15.0}]
    )


def test_each_loss_and_split_is_one_line_with_its_values():
    ax = plot_losses(metrics())
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert set(lines) == {"loss, train", "loss, val", "loss/hog, train"}
    assert lines["loss, val"].get_xydata().tolist() == [[10, 0.2]]
    assert (
        lines["loss, train"].get_color()
        == lines["loss, val"].get_color()
        != lines["loss/hog, train"].get_color()
    )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training step", "loss")


def test_columns_axis_and_axes_can_be_chosen():
    own_ax = pyplot.figure().add_subplot()
    ax = plot_losses(metrics(), columns=["psnr"], x="images", ax=own_ax)
    assert ax is own_ax
    assert ax.get_ylabel() == "psnr"
    assert ax.get_xlabel() == "training images seen"
    assert plot_losses(metrics(), log=True).get_yscale() == "log"


def test_a_rung_has_one_colour_whatever_stands_beside_it():
    both = colours_for(["tokenizer-hog-s0", "mine", "ae"])
    assert colours_for(["hog"])["hog"] == both["tokenizer-hog-s0"]
    assert colours_for(["ae-mask"])["ae-mask"] != both["ae"] == colours_for(["ae"])["ae"]
    assert len(set(both.values())) == 3
    sweep = colours_for(["ladder-kl-tiny-s0", "ladder-kl-1e-2-tiny-s0", "kl-8", "kl"])
    assert sweep["ladder-kl-tiny-s0"] == sweep["kl"] == colours_for(["kl"])["kl"]
    assert len(set(sweep.values())) == 3
    assert len(set(colours_for(map(str, range(8))).values())) == len(PALETTE)
    assert len(colours_for(map(str, range(20)))) == 20


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match=r"no column \['loss/gan'\].*loss/hog"):
        plot_losses(metrics(), columns=["loss/gan"])
    with pytest.raises(ValueError, match="named loss"):
        plot_losses(pd.DataFrame({"step": [1]}))
