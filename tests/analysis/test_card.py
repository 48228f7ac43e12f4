"""The card holds every number of the package, survives JSON, and its correlation with a metric is scipy's."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from maetok_lab.analysis.card import (
    CardSettings,
    card_correlation,
    cards_of,
    diffusability_card,
    read_card,
    write_card,
)
from maetok_lab.analysis.gmm import gmm_curve
from maetok_lab.analysis.probe import linear_probe
from maetok_lab.rng import generator

SETTINGS = CardSettings(components=(1, 3), dimensions=4, decoded=12, pairs=4, noise_levels=(0.1,))


def latents(count=150, name="train"):
    labels = torch.arange(count) % 3
    centres = 3 * torch.randn(3, 4, 2, generator=generator(0, "centres"))
    return centres[labels] + torch.randn(count, 4, 2, generator=generator(0, name)), labels


def decode(z):
    return z.transpose(1, 2).unflatten(2, (2, 2))[:, [0, 1, 0]] * 0.1


def card(**given):
    return diffusability_card(*latents(), *latents(60, "test"), settings=SETTINGS, **given)


def test_entries_are_the_numbers_of_their_functions():
    x, y = latents()
    test, test_labels = latents(60, "test")
    table = card(
        decode=decode, diffusion_loss={"loss": 0.4, "loss/t0.25": 0.6}, known={"psnr": 18.0}
    )
    curve = gmm_curve(x, [1, 3], dimensions=4, heldout_latents=test)
    assert table.value["gmm_nll_3"] == curve.heldout_nll[1]
    assert table.value["gmm_nll_per_dim_3"] == curve.heldout_nll[1] / 4
    assert table.value["gmm_dimensions"] == 4
    probe = linear_probe(x, y, test, test_labels)
    assert (table.value["probe_top1"], table.error["probe_top1"]) == (
        probe.top1,
        probe.standard_error,
    )
    assert table.value["psnr"] == 18
    assert table.value["diffusion_loss/t0.25"] == 0.6
    assert set(table.group) == {"known", "mixture", "shape", "probe", "decoder", "diffusion"}
    assert {"token_correlation", "intrinsic_dimension_twonn", "effective_rank", "knn_top1"} <= set(
        table.index
    )
    assert {"psnr_at_noise_0.1", "interpolation_detour", "probe_pooled_top1"} <= set(table.index)
    assert table.value.notna().all()


def test_parts_that_were_not_given_are_left_out_and_a_loss_can_be_made_on_demand():
    table = card(diffusion_loss=lambda: {"loss": 0.3})
    assert table.value["diffusion_loss"] == 0.3
    assert "decoder" not in set(table.group)


def test_a_card_survives_json(tmp_path):
    table = card(decode=decode)
    write_card(table, tmp_path / "card.json")
    back = read_card(tmp_path / "card.json")
    pd.testing.assert_frame_equal(back, table)
    assert back.attrs["curves"]["spectrum"] == table.attrs["curves"]["spectrum"]
    assert back.attrs["settings"]["dimensions"] == 4


def cards(count):
    random = generator(0, "cards")
    made = {}
    for run in range(count):
        noise = torch.randn(2, generator=random).tolist()
        values = {"follows": run, "against": -(run**3), "noise": noise[0], "same": 1.0}
        made[f"run-{run}"] = pd.DataFrame({"value": values}).rename_axis("entry")
    return made, {f"run-{run}": 2.0**run for run in range(count)}


def test_rank_correlation_agrees_with_scipy_and_is_sorted_by_strength():
    stats = pytest.importorskip("scipy.stats")
    made, metric = cards(8)
    table = card_correlation(made, metric)
    assert table.rho["follows"] == pytest.approx(1)
    assert table.rho["against"] == pytest.approx(-1)
    noise = [c.value["noise"] for c in made.values()]
    assert table.rho["noise"] == pytest.approx(
        stats.spearmanr(noise, list(metric.values())).statistic
    )
    assert table.index[-1] == "noise"
    assert "same" not in table.index
    assert table.low["noise"] < table.rho["noise"] < table.high["noise"]
    assert table.high["noise"] - table.low["noise"] > 0.5


def test_correlation_takes_runs_that_hold_their_cards(tmp_path):
    made, metric = cards(6)
    for name, one in made.items():
        (tmp_path / name).mkdir()
        full = one.assign(group="shape", error=math.nan, unit="")
        full.attrs = {"settings": {}, "gmm_protocol": {}, "curves": {}}
        write_card(full, tmp_path / name / "card.json")
    folders = [tmp_path / name for name in made]
    assert list(cards_of(folders)) == list(made)
    pd.testing.assert_frame_equal(card_correlation(folders, metric), card_correlation(made, metric))
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match=r"run bare has no card: it needs card\.json"):
        card_correlation([*folders, tmp_path / "bare"], metric)


def test_few_runs_are_said_to_mean_nothing():
    made, metric = cards(4)
    with pytest.warns(UserWarning, match="over 4 runs mean nothing"):
        table = card_correlation(made, metric)
    assert np.isnan(table.low).all()
    with pytest.raises(ValueError, match=r"no metric for \['run-1'\]"):
        card_correlation(made, {"run-0": 1.0, "run-2": 2.0, "run-3": 3.0})
    with pytest.raises(ValueError, match="at least three runs"):
        card_correlation({name: made[name] for name in ("run-0", "run-1")}, metric)
    made["run-1"].attrs["settings"] = {"seed": 1}
    with pytest.warns(UserWarning, match="over 4 runs"):
        pd.testing.assert_frame_equal(card_correlation(made, metric), table)
    made["run-1"].attrs["settings"] = {"dimensions": 7}
    with pytest.raises(ValueError, match="different settings"):
        card_correlation(made, metric)
    assert math.isfinite(table.rho["follows"])
