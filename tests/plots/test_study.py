"""The figures of a study: who is below the curve of blur, and which entries survive it."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from maetok_lab.plots import plot_control, plot_predictors
from maetok_lab.plots.curves import PALETTE, colours_for
from maetok_lab.plots.study import GREY

GREY_HEX = to_hex(GREY)


def line(row, psnr, kid, seed=0):
    kind = "control" if row.startswith("control") else "rung"
    ends = {"kid": kid, "kid_low": kid - 0.4, "kid_high": kid + 0.4}
    return {"row": row, "seed": seed, "kind": kind, "psnr": psnr, **ends}


CURVE = [line("control 18 dB", 18, 4.0), line("control 20 dB", 20, 6.0), line("ae", 24, 10.0)]


def control(*lines):
    ax = plot_control(pd.DataFrame([*lines, *CURVE]))
    dots = {}
    for each in ax.get_lines():
        if each.get_marker() == "o" and len(each.get_xdata()) == 1:
            dots[float(each.get_xdata()[0]), float(each.get_ydata()[0])] = each
    return ax, dots


def test_the_curve_of_controls_goes_through_the_whole_autoencoder():
    ax, _ = control(line("hog", 19, 3.0))
    curve = ax.get_lines()[0]
    assert list(curve.get_xdata()) == [18, 20, 24]
    assert list(curve.get_ydata()) == [4, 6, 10]
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((3.6, 10.4))
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "PSNR on test images (dB)",
        "kid of samples (smaller is better)",
    )


def test_rungs_below_the_curve_have_their_colour_and_no_others():
    lines = [line("hog", 19, 4.9), line("all", 22, 8.1), line("kl", 22, 8.0), line("x", 25, 1.0)]
    ax, dots = control(*lines)
    assert to_hex(dots[19, 4.9].get_color()) == colours_for(["hog"])["hog"].lower()
    for place in ((22, 8.1), (22, 8.0), (25, 1.0)):
        assert to_hex(dots[place].get_color()) == GREY_HEX
    # of one beyond the curve nothing can be said: it is open
    assert dots[25, 1.0].get_markerfacecolor() == "white"
    assert to_hex(dots[22, 8.1].get_markerfacecolor()) == GREY_HEX
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["autoencoder stopped early", "no better than that", "PSNR without a control"]
    assert len(control(line("hog", 19, 4.9))[0].get_legend().get_texts()) == 1


def test_a_rung_is_one_point_a_mean_over_its_seeds():
    lines = [line("hog", 19, 3.0), line("hog", 20, 5.0, seed=1)]
    ax, dots = control(*lines)
    assert list(dots) == [(19.5, 4.0)]
    half = 0.4 / np.sqrt(2)
    bars = [each for each in ax.get_lines() if list(each.get_xdata()) == [19.5, 19.5]]
    assert list(bars[0].get_ydata()) == pytest.approx([4 - half, 4 + half])


def test_names_of_points_that_are_close_do_not_overlap():
    lines = []
    for number in range(14):
        row = f"a long name {number}"
        lines.append(line(row, 21 + 0.03 * (number % 4), 3 + 0.05 * number))
    # at the right end a name stands on the left of its point
    lines.append(line("one with a very long name", 23.99, 3.0))
    ax, _ = control(*lines)
    ax.figure.draw_without_rendering()
    texts = [text for text in ax.texts if text.get_text()]
    assert {text.get_text() for text in texts} == {each["row"] for each in lines} | {"ae"}
    # the arrows of annotations are no part of the words
    boxes = []
    for text in texts:
        text.arrow_patch = None
        boxes.append(text.get_window_extent())
    for number, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:number]) == 0
        assert box.x1 <= ax.get_window_extent().x1
    spots = ax.transData.transform([(each["psnr"], each["kid"]) for each in lines])
    for box in boxes:
        near = box.padded(2.5)  # dots are 6 points wide
        assert not [spot for spot in spots if near.contains(*spot)]


def test_a_table_without_controls_is_refused():
    with pytest.raises(ValueError, match="train the controls first"):
        plot_control(pd.DataFrame([line("hog", 19, 3.0), line("ae", 24, 10.0)]))


def table(count=20):
    rows = {}
    for number in range(count):
        partial = (-1) ** number * (1 - number / count)
        rows[f"entry_$_{number}"] = {
            "rank_correlation": partial / 2,
            "low": partial / 2 - 0.1,
            "high": partial / 2 + 0.1,
            "partial": partial,
            "partial_low": partial - 0.2,
            "partial_high": partial + 0.2,
            "survives": "yes" if number < 3 else "no",
        }
    result = pd.DataFrame.from_dict(rows, orient="index")
    result.attrs = {"score": "kid_gap", "given": "psnr"}
    return result


def test_an_entry_has_an_open_and_a_filled_dot_with_their_intervals():
    ax = plot_predictors(table(), top=4)
    lines = ax.get_lines()[1:]  # after that at zero
    assert list(ax.get_lines()[0].get_xdata()) == [0, 0]
    for number, colour in enumerate([PALETTE[0].lower()] * 3 + [GREY_HEX]):
        alone_bar, alone, partial_bar, partial = lines[4 * number : 4 * number + 4]
        value = table()["partial"].iloc[number]
        assert list(alone.get_xdata()) == [value / 2]
        assert list(partial.get_xdata()) == [value]
        assert list(alone_bar.get_xdata()) == pytest.approx([value / 2 - 0.1, value / 2 + 0.1])
        assert list(partial_bar.get_xdata()) == pytest.approx([value - 0.2, value + 0.2])
        assert alone.get_markerfacecolor() == "white"
        assert {to_hex(each.get_color()) for each in (alone, partial)} == {colour}
        assert to_hex(partial.get_markerfacecolor()) == colour
        # both dots and bars are at the entry's name
        assert abs(alone.get_ydata()[0] - number) < 0.5
        assert partial.get_ydata()[0] == partial_bar.get_ydata()[0] > alone.get_ydata()[0]


def test_the_strongest_entries_stand_on_top_by_name():
    ax = plot_predictors(table(), top=4)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [rf"entry_\$_{number}" for number in range(4)]
    bottom, top = ax.get_ylim()
    assert bottom > 3
    assert top < 0
    assert ax.get_xlabel() == "rank correlation with kid gap"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["alone", "given PSNR", "does not survive"]
    assert len(plot_predictors(table(), top=3).get_legend().get_texts()) == 2
    assert len(plot_predictors(table()).get_yticklabels()) == 14
    with pytest.raises(ValueError, match=r"no column \['partial'\]"):
        plot_predictors(table().drop(columns="partial"))


def test_figures_are_drawn_into_axes_that_are_handed_in():
    from matplotlib import pyplot

    _, (left, right) = pyplot.subplots(1, 2)
    assert plot_predictors(table(), ax=left) is left
    assert plot_control(pd.DataFrame([*CURVE, line("hog", 19, 3.0)]), ax=right) is right
