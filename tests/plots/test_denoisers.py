"""The figure of denoisers: a panel a table, mixtures in shades, one scale."""

import pandas as pd
import pytest

from maetok_lab.plots.denoisers import plot_denoisers


def losses(shift=0.0):
    rows = []
    for number, name in enumerate(["linear", "1 mode", "5 modes", "model"]):
        rows += [
            {"denoiser": name, "t": t, "loss": 1 - t / 2 + number / 9 + shift} for t in (0.1, 0.9)
        ]
    return pd.DataFrame(rows)


def test_a_panel_for_each_table_and_a_line_for_each_denoiser():
    figure = plot_denoisers({"a": losses(), "b": losses(0.2)})
    assert [len(ax.get_lines()) for ax in figure.axes] == [4, 4]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == ["linear, knows class means", "1 mode", "5 modes", "diffusion model"]
    assert figure.axes[0].get_legend() is None
    first = figure.axes[0].get_lines()
    assert first[1].get_alpha() < first[2].get_alpha()
    assert list(first[3].get_ydata()) == list(losses().query("denoiser == 'model'").loss)


def test_cards_are_taken_too_and_one_without_is_refused():
    card = pd.DataFrame({"value": [1.0]}, index=["viv"])
    with pytest.raises(ValueError, match="the card old has no losses of denoisers"):
        plot_denoisers({"old": card})
    card.attrs["curves"] = {"denoisers": losses().to_dict("records")}
    assert len(plot_denoisers({"new": card}).axes[0].get_lines()) == 4
