"""The card holds every number of the package and survives JSON; correlations are scipy's."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

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
    small = z.transpose(1, 2).unflatten(2, (2, 2))[:, [0, 1, 0]] * 0.1
    return small.repeat_interleave(16, 2).repeat_interleave(16, 3)


def card(**options):
    return diffusability_card(*latents(), *latents(60, "test"), settings=SETTINGS, **options)


def test_entries_are_the_numbers_of_their_functions():
    x, y = latents()
    test, test_labels = latents(60, "test")
    losses = {"loss": 0.4, "loss/t0.25": 0.6}
    table = card(decode=decode, diffusion_loss=losses, beside={"psnr": 18.0})
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
    assert set(table.group) == {
        *("known", "mixture", "shape", "probe", "denoiser", "decoder", "diffusion")
    }
    assert {"token_correlation", "intrinsic_dimension_twonn", "effective_rank", "knn_top1"} <= set(
        table.index
    )
    assert {"psnr_at_noise_0.1", "interpolation_detour", "probe_pooled_top1"} <= set(table.index)
    assert {"gsq", "lnc_5_pooled", "lpc_squeeze_0.5", "viv", "denoiser_loss_3_modes"} <= set(
        table.index
    )
    assert dict(table.better[["viv", "probe_top1", "effective_rank"]]) == {
        "viv": "lower",
        "probe_top1": "higher",
        "effective_rank": "",
    }
    assert table.value.notna().all()


def test_parts_that_were_not_given_are_left_out():
    table = card(diffusion_loss={"loss": 0.3})
    assert table.value["diffusion_loss"] == 0.3
    assert "decoder" not in set(table.group)


def test_a_card_survives_json(tmp_path):
    table = card(decode=decode)
    write_card(table, tmp_path / "card.json")
    back = read_card(tmp_path / "card.json")
    pd.testing.assert_frame_equal(back, table)
    assert back.attrs["curves"]["spectrum"] == table.attrs["curves"]["spectrum"]
    assert back.attrs["settings"]["dimensions"] == 4


def test_every_number_and_curve_says_its_definition(tmp_path):
    validation = latents(40, "validation")
    given = {"diffusion_loss": {"loss": 0.4}, "beside": {"psnr": 18.0}}
    table = card(decode=decode, validation=validation, **given)
    write_card(table, tmp_path / "card.json")
    definitions = json.loads((tmp_path / "card.json").read_text())["definitions"]
    assert set(definitions) == {*table.index, "gmm", "spectrum", "denoisers", "robustness"}
    for stated in definitions.values():
        assert set(stated) == {"measure", "formula", "source", "settings"}
        assert stated["formula"]
        assert stated["source"]
    assert definitions["gmm_nll_3"]["settings"] == {"components": 3}
    assert definitions["gmm"]["settings"]["covariance"] == "diag"
    assert definitions["psnr_at_noise_0.1"]["settings"] == {"level": 0.1, "images": 12}
    neighbours = {"neighbours": 10, "max_rows": 5000, "seed": 0}
    assert definitions["intrinsic_dimension_mle"]["settings"] == neighbours
    assert definitions["probe_top1"]["settings"]["chosen_on"] == "40 validation rows"
    assert definitions["probe_pooled_top1"]["settings"]["pooled"]
    assert definitions["knn_top1"]["measure"] == "knn_probe"
    assert definitions["psnr"]["measure"] == "given"


def test_cards_of_other_definitions_are_not_compared():
    validation = latents(40, "validation")
    same = {name: card(validation=validation) for name in "abc"}
    metric = {"a": 1.0, "b": 2.0, "c": 3.0}
    with pytest.raises(ValueError, match="no entry differs"):
        card_correlation(same, metric)
    other = same | {"b": card()}
    with pytest.raises(ValueError, match=r"cards a and b define probe_top1, .* differently"):
        card_correlation(other, metric)
    same["c"].attrs.pop("definitions")  # of an earlier version
    with pytest.raises(ValueError, match=r"cards a and c define gmm_dimensions, .* differently"):
        card_correlation(same, metric)


def test_losses_by_time_say_of_what_time():
    table = card(diffusion_loss={"loss": 0.4, "loss/t0.25": 0.6})
    definitions = table.attrs["definitions"]
    assert definitions["diffusion_loss"]["settings"] == {"steps": 0}
    assert definitions["diffusion_loss/t0.25"]["settings"] == {"steps": 0, "t_from": 0.25}


def test_the_probes_of_a_card_are_chosen_on_its_validation_latents():
    validation = latents(40, "validation")
    data = (*latents(), *latents(60, "test"))
    for given in (None, validation):
        probe = linear_probe(*data, validation=given)
        assert card(validation=given).value["probe_top1"] == probe.top1
        words = "40 validation rows" if given else "a random 20% of the training rows"
        assert probe.definition["settings"]["chosen_on"] == words


def cards(count):
    random = generator(0, "cards")
    tables = {}
    for run in range(count):
        noise = torch.randn(2, generator=random).tolist()
        values = {"follows": run, "against": -(run**3), "noise": noise[0], "same": 1.0}
        tables[f"run-{run}"] = pd.DataFrame({"value": values}).rename_axis("entry")
    return tables, {f"run-{run}": 2.0**run for run in range(count)}


def test_rank_correlation_agrees_with_scipy_and_is_sorted_by_strength():
    tables, metric = cards(8)
    table = card_correlation(tables, metric)
    assert table.rho["follows"] == pytest.approx(1)
    assert table.rho["against"] == pytest.approx(-1)
    noise = [c.value["noise"] for c in tables.values()]
    assert table.rho["noise"] == pytest.approx(
        stats.spearmanr(noise, list(metric.values())).statistic
    )
    assert table.index[-1] == "noise"
    assert "same" not in table.index
    assert table.low["noise"] < table.rho["noise"] < table.high["noise"]
    assert table.high["noise"] - table.low["noise"] > 0.5


def test_runs_hold_their_cards(tmp_path):
    tables, metric = cards(6)
    for name, one in tables.items():
        (tmp_path / name).mkdir()
        full = one.assign(group="shape", error=math.nan, unit="")
        full.attrs = {"settings": {}, "gmm_protocol": {}, "curves": {}}
        write_card(full, tmp_path / name / "card.json")
    folders = [tmp_path / name for name in tables]
    held = cards_of(folders)
    assert list(held) == list(tables)
    pd.testing.assert_frame_equal(card_correlation(held, metric), card_correlation(tables, metric))
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match=r"run bare has no card: it needs card\.json"):
        cards_of([*folders, tmp_path / "bare"])


def test_few_runs_are_said_to_mean_nothing():
    tables, metric = cards(4)
    with pytest.warns(UserWarning, match="over 4 runs mean nothing"):
        table = card_correlation(tables, metric)
    assert np.isnan(table.low).all()
    with pytest.raises(ValueError, match=r"no metric for \['run-1'\]"):
        card_correlation(tables, {"run-0": 1.0, "run-2": 2.0, "run-3": 3.0})
    with pytest.raises(ValueError, match="at least three runs"):
        card_correlation({name: tables[name] for name in ("run-0", "run-1")}, metric)
    tables["run-1"].attrs["settings"] = {"seed": 1}
    with pytest.warns(UserWarning, match="over 4 runs"):
        pd.testing.assert_frame_equal(card_correlation(tables, metric), table)
    tables["run-1"].attrs["settings"] = {"dimensions": 7}
    with pytest.raises(ValueError, match="different settings"):
        card_correlation(tables, metric)
    assert math.isfinite(table.rho["follows"])


def test_published_correlations_stand_beside_entries_of_the_same_measure_only():
    tables, metric = cards(6)
    definitions = {"follows": {"measure": "ifid", "settings": {}}, "noise": {"measure": "given"}}
    for one in tables.values():
        one.attrs["definitions"] = {
            name: stated | {"settings": {}} for name, stated in definitions.items()
        }
    published = pd.DataFrame({"rho": [0.9, 0.1], "tokenizers": [14, 16]}, index=["ifid", "rfid"])
    beside = card_correlation(tables, metric, published=published)
    alone = card_correlation(tables, metric)
    pd.testing.assert_frame_equal(beside[alone.columns], alone)  # nothing is pooled
    assert beside.loc["follows", ["published_rho", "published_tokenizers"]].tolist() == [0.9, 14]
    assert beside.loc[["noise", "against"], "published_rho"].isna().all()


def test_classes_of_three_have_no_ambiguity_and_a_card_all_the_same():
    (x, _), (test, _) = latents(30), latents(20, "test")
    # the last class is among the test images alone
    table = diffusability_card(
        x, torch.arange(30) % 10, test, torch.arange(20) % 11, settings=SETTINGS
    )
    assert table.value[["viv", "within_class_share"]].isna().all()
    stated = table.attrs["definitions"]["viv"]
    assert "needs a class of 4 latents" in stated["settings"]["no value"]
    assert math.isfinite(table.value["denoiser_loss_linear"])


def test_images_that_squeezenet_cannot_see_have_no_perceptual_continuity():
    table = card(decode=lambda z: decode(z)[..., ::8, ::8])
    assert math.isnan(table.value["lpc_squeeze"])
    reason = table.attrs["definitions"]["lpc_squeeze"]["settings"]["no value"]
    assert reason == "SqueezeNet needs images of 32 px, these have 4"
