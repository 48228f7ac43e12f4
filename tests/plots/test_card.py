"""The card's figure: a panel for each curve there is, one colour a card, and a table of numbers."""

import pandas as pd
import pytest

from maetok_lab.plots.card import card_curve, plot_card


def card(losses=True):
    values = {"psnr": 20.6, "gmm_dimensions": 60.0} | (
        {"diffusion_loss/t0.50": 0.3, "diffusion_loss": 0.4} if losses else {}
    )
    table = pd.DataFrame({"value": values}).rename_axis("entry")
    gmm = [{"components": k, "heldout_nll_per_dim": 1.4 - k / 100} for k in (1, 10)]
    table.attrs["curves"] = {
        "spectrum": [6.0, 3.0, 1.0],
        "gmm": gmm,
        "robustness": [{"noise": 0.1, "psnr": 30.0}],
    }
    return table


def test_curves_are_read_from_the_card():
    assert card_curve(card(), "spectrum") == ([1, 2, 3], pytest.approx([0.6, 0.9, 1.0]))
    assert card_curve(card(), "mixture") == ([1, 10], pytest.approx([1.39, 1.3]))
    assert card_curve(card(), "diffusion") == ([0.5], [0.3])
    assert card_curve(card(losses=False), "diffusion") is None


def test_a_panel_for_each_curve_and_a_line_for_each_card():
    figure = plot_card({"ae": card(), "hog": card(losses=False)})
    assert [len(ax.get_lines()) for ax in figure.axes] == [2, 2, 2, 1, 0]
    assert figure.axes[0].get_lines()[0].get_color() == figure.axes[3].get_lines()[0].get_color()
    assert figure.axes[1].get_ylabel() == "held-out NLL (nats/dimension)"
    cells = {text.get_text().get_text() for text in figure.axes[4].tables[0].get_celld().values()}
    assert {"ae", "hog", "PSNR, dB", "20.6", "60", "0.4"} <= cells
    assert len(plot_card(card(losses=False)).axes) == 4
    with pytest.raises(ValueError, match="no cards"):
        plot_card({})
