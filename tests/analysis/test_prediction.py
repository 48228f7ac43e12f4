"""What predicts generation is told from what goes along with PSNR; controls are met by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from maetok_lab.analysis.prediction import at_equal_psnr, mean_scores, predictors

# Which entry predicts? ----------------------------------------------------------------------------


def study(tokenizers=20, seeds=1, **columns):
    """Scores that are blur's and those of a property of the latents, which PSNR says nothing of."""
    random = np.random.default_rng(3)
    # columns that are orthogonal, so that a sample is not correlated by chance
    directions = np.linalg.qr(random.normal(size=(tokenizers, 4)))[0].T
    psnr, shape, first, second = math.sqrt(tokenizers) * directions
    table = pd.DataFrame({"row": [f"t{number}" for number in range(tokenizers)], "kind": "rung"})
    table["seed"] = 0
    table["psnr"] = 20 + psnr
    table["kid"] = 1.3 * psnr + shape
    table["kid_low"] = table["kid"] - 0.1
    table["kid_high"] = table["kid"] + 0.1
    table["blur"] = psnr + 0.3 * first
    table["viv"] = shape + 0.2 * second
    for name, values in columns.items():
        table[name] = values
    copies = [table.assign(seed=seed) for seed in range(seeds)]
    return pd.concat(copies, ignore_index=True)


def test_what_follows_psnr_alone_predicts_and_does_not_survive():
    result = predictors(study())
    assert result.loc["blur", ["predicts", "survives"]].tolist() == ["yes", "no"]
    assert result.rank_correlation["blur"] > 0.7
    assert result.partial_low["blur"] < 0 < result.partial_high["blur"]
    assert result.q["blur"] > 0.05


def test_what_says_more_than_psnr_survives_and_stands_first():
    result = predictors(study())
    assert list(result.index) == ["viv", "blur"]
    assert result.survives["viv"] == "yes"
    assert result.partial["viv"] > 0.7 > result.rank_correlation["viv"] + 0.2
    assert result.partial_low["viv"] > 0
    assert result.q["viv"] < 0.01
    # strength is whichever way it goes
    table = study()
    table["viv"] = -table["viv"]
    assert list(predictors(table).index) == ["viv", "blur"]


def test_an_entry_that_orders_tokenizers_as_psnr_does_has_no_partial_correlation():
    table = study()
    table["blur"] = np.exp(-table["psnr"])
    result = predictors(table)
    assert result.index[-1] == "blur"
    assert result.loc["blur", ["partial", "p", "q"]].isna().all()
    assert result.loc["blur", ["predicts", "survives"]].tolist() == ["yes", "no"]
    # it is no test among those that are counted
    assert result.q["viv"] == result.p["viv"]


def test_a_partial_correlation_of_the_other_sign_does_not_survive():
    table = study(tokenizers=40)
    table["blur"] = 4 * table["psnr"] - table["viv"]
    result = predictors(table)
    assert result.rank_correlation["blur"] > 0
    assert result.partial_high["blur"] < 0
    assert result.loc["blur", ["predicts", "survives"]].tolist() == ["yes", "no"]


def test_correlations_are_those_of_ranks_and_of_what_psnr_leaves_of_them():
    table = study(tokenizers=7)
    result = predictors(table)
    for entry in ("viv", "blur"):
        whole = stats.spearmanr(table[entry], table["kid"]).statistic
        assert result.rank_correlation[entry] == pytest.approx(whole)
        # from the inverse of the matrix of correlations
        ranks = table[[entry, "kid", "psnr"]].rank().to_numpy()
        inverse = np.linalg.inv(np.corrcoef(ranks.T))
        partial = -inverse[0, 1] / math.sqrt(inverse[0, 0] * inverse[1, 1])
        assert result.partial[entry] == pytest.approx(partial)
        # and as the correlation of residuals
        design = np.stack([np.ones(7), ranks[:, 2]], axis=1)
        x, y, _ = (ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]).T
        assert result.partial[entry] == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_a_partial_correlation_by_hand():
    table = study(tokenizers=5).drop(columns="blur")
    table["psnr"] = [1.0, 2.0, 3.0, 4.0, 5.0]
    table["viv"] = [2.0, 1.0, 4.0, 3.0, 5.0]
    table["kid"] = [2.0, 3.0, 1.0, 5.0, 4.0]
    # sums of squared differences D of ranks are 18, 4 and 8; a correlation is 1 - 6 D / 120
    xy, xz, yz = 0.1, 0.8, 0.6
    result = predictors(table)
    assert result.rank_correlation["viv"] == pytest.approx(xy)
    expected = (xy - xz * yz) / math.sqrt(0.36 * 0.64)
    assert result.partial["viv"] == pytest.approx(expected)


def test_an_interval_alone_does_not_make_an_entry_survive():
    # of five tokenizers, some draws of which are too alike to have a partial correlation
    result = predictors(study(tokenizers=5)).loc["viv"]
    assert result.partial_low > 0
    assert result.p > 0.05
    assert result.survives == "no"


def test_seeds_of_a_tokenizer_are_averaged_and_not_drawn_as_tokenizers():
    pd.testing.assert_frame_equal(
        predictors(study(seeds=1)), predictors(study(seeds=3)), check_exact=False
    )
    table = study(seeds=2)
    table.loc[table["seed"] == 1, "viv"] = np.random.default_rng(1).permutation(20) / 5.0
    means = table.groupby("row")[["viv", "kid"]].mean()
    expected = stats.spearmanr(means["viv"], means["kid"]).statistic
    assert predictors(table).rank_correlation["viv"] == pytest.approx(expected)
    assert predictors(table).attrs["seeds"]["t4"] == 2


def test_an_entry_is_averaged_over_the_seeds_that_have_it_and_so_is_its_score():
    table = study(seeds=2)
    # a seed without the entry, of quite another score, has no part in the comparison
    lacking = table["seed"] == 1
    table.loc[lacking, "viv"] = np.nan
    table.loc[lacking, "kid"] = np.arange(20.0)[::-1] * 100
    alone = predictors(table[~lacking], entries=["viv"])
    pd.testing.assert_frame_equal(predictors(table, entries=["viv"]), alone)


def test_intervals_are_those_of_tokenizers_that_are_drawn_with_replacement():
    table = study(tokenizers=15)
    result = predictors(table, resamples=4000)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        rows = table.iloc[random.integers(15, size=15)]
        (_, xy, xz), (_, _, yz), _ = np.corrcoef(rows[["viv", "kid", "psnr"]].rank().to_numpy().T)
        drawn.append((xy, (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    columns = [["low", "partial_low"], ["high", "partial_high"]]
    assert result.loc["viv", columns[0]].tolist() == pytest.approx(low.tolist(), abs=0.04)
    assert result.loc["viv", columns[1]].tolist() == pytest.approx(high.tolist(), abs=0.04)
    assert predictors(table, seed=1).low["viv"] != predictors(table, seed=0).low["viv"]
    assert predictors(table, resamples=50).attrs["resamples"] == 50


def test_draws_in_which_an_entry_is_constant_are_left_out():
    flag = np.zeros(20)
    flag[3] = 1  # a third of the draws lack it
    result = predictors(study(viv=flag))
    assert result.loc["viv", ["low", "high", "partial_low", "partial_high"]].notna().all()


@pytest.mark.parametrize("viv", [[3.0, 1, 6, 2, 5, 4], [1.0, 2, 4, 3, 6, 5]])
def test_p_is_that_of_all_orders_of_the_residuals(viv):
    table = study(tokenizers=6, viv=viv)
    table["psnr"] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    table["kid"] = [1.0, 2.0, 4.0, 3.0, 6.0, 5.0]
    result = predictors(table)
    ranks = table[["viv", "kid", "psnr"]].to_numpy()
    design = np.stack([np.ones(6), ranks[:, 2]], axis=1)

    def residuals(values):
        return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]

    # the order that is there is one of them, also where it is the strongest
    x, y, _ = residuals(ranks).T
    orders = itertools.permutations(range(6))
    drawn = [np.corrcoef(x, residuals(y[list(order)]))[0, 1] for order in orders]
    expected = np.mean(np.abs(drawn) >= abs(result.partial["viv"]) - 1e-9)
    assert result.p["viv"] == pytest.approx(expected, abs=3 * math.sqrt(expected / 10_000))


def test_of_many_entries_of_noise_some_seem_to_survive_and_q_tells():
    noise = np.random.default_rng(5).normal(size=(60, 20))
    table = study(**{f"noise_{number}": row for number, row in enumerate(noise)})
    result = predictors(table)
    noises = result.drop(index=["viv", "blur"])
    assert (noises["p"] < 0.05).sum() in range(1, 9)
    assert noises["q"].min() > 0.05
    # one true entry among sixty is told from them
    assert result.q["viv"] < 0.05
    # Benjamini and Hochberg: the least of p * entries / place, from this place on
    ordered = result["p"].sort_values()
    scaled = ordered * len(ordered) / np.arange(1, len(ordered) + 1)
    expected = scaled[::-1].cummin()[::-1]
    np.testing.assert_allclose(result["q"].reindex(expected.index), expected.clip(upper=1))


def test_what_cannot_be_tested_is_left_out_and_said():
    few = np.full(20, np.nan)
    few[:4] = [1, 3, 2, 4]
    table = study(same=2.0, few=few, run="name", probe_top1=few)
    table.loc[4, "probe_top1"] = 0.5
    result = predictors(table)
    assert set(result.index) == {"viv", "blur", "probe_top1"}
    assert result.attrs["left_out"] == {
        "same": "the same for all tokenizers",
        "few": "of 4 tokenizers, fewer than 5",
    }
    assert result.tokenizers.to_dict() == {"viv": 20, "blur": 20, "probe_top1": 5}
    assert result.attrs["tokenizers"] == 20
    assert (result.attrs["score"], result.attrs["given"]) == ("kid", "psnr")
    with pytest.raises(ValueError, match="no entry differs over 5 or more"):
        predictors(table, entries=["same", "few"])
    with pytest.raises(ValueError, match=r"needs columns \['fid'\]; it has"):
        predictors(table, score="fid")
    with pytest.raises(ValueError, match="'t0' with seed 0 twice"):
        predictors(pd.concat([table, table]))


def test_the_expected_sign_is_that_of_a_distance_which_is_better_when_lower():
    values = dict(zip(["gmm_nll_50", "probe_top1", "effective_rank"], np.eye(3, 20)))
    result = predictors(study(**values))
    assert result.expected[["viv", "gmm_nll_50", "probe_top1"]].tolist() == ["+", "+", "-"]
    assert result.expected[["effective_rank", "blur"]].tolist() == ["", ""]


def test_another_score_and_another_control_can_be_asked_for():
    table = study(kid_gap=np.arange(20.0) ** 2, kid_gap_low=0.0, kid_gap_high=9.0)
    table["viv"] = np.arange(20.0)
    result = predictors(table, score="kid_gap", given="blur")
    assert result.rank_correlation["viv"] == pytest.approx(1)
    # what is controlled for is no entry, nor is the usual control
    assert list(result.index) == ["viv"]
    assert result.attrs["given"] == "blur"


# What blur alone gives ----------------------------------------------------------------------------


def line(row, psnr, kid, *, seed=0, half=0.0):
    kind = "control" if row.startswith("control") else "rung"
    ends = {"kid": kid, "kid_low": kid - half, "kid_high": kid + half}
    return {"row": row, "seed": seed, "kind": kind, "psnr": psnr, **ends}


def curve(*, seed=0, lift=0.0, half=0.0):
    """18 dB: 4, 20 dB: 6, the whole autoencoder at 24 dB: 10."""
    options = {"seed": seed, "half": half}
    points = {"control 18 dB": (18, 4), "control 20 dB": (20, 6), "ae": (24, 10)}
    return [line(row, psnr, kid + lift, **options) for row, (psnr, kid) in points.items()]


def equal(*lines, **options):
    return at_equal_psnr(pd.DataFrame(lines), **options)


def test_the_control_is_on_the_line_between_its_neighbours():
    table = equal(*curve(), line("hog", 19, 3.0), line("all", 23, 9.5), line("kl", 20, 6.0))
    assert table.control.to_dict() == {"hog": 5.0, "all": 9.0, "kl": 6.0, "ae": 10.0}
    assert table.gain.to_dict() == {"hog": 2.0, "all": -0.5, "kl": 0.0, "ae": 0.0}
    assert table.gain_over_ae.to_dict() == {"hog": 7.0, "all": 0.5, "kl": 4.0, "ae": 0.0}
    # best first
    assert list(table.index) == ["hog", "kl", "ae", "all"]


def test_order_of_lines_changes_nothing():
    lines = [*curve(), line("hog", 19, 3.0)]
    assert equal(*lines[::-1]).control["hog"] == 5.0


def test_intervals_are_of_differences_of_independent_normals():
    lines = [*curve(half=0.6), line("hog", 19, 3.0, half=0.8), line("kl", 20, 3.0, half=0.8)]
    table = equal(*lines)
    # halfway between two controls their errors are averaged; at a control it has its own
    half = math.sqrt(0.8**2 + 2 * 0.3**2)
    assert (table.low["hog"], table.high["hog"]) == pytest.approx((2 - half, 2 + half))
    assert table.low["kl"] == pytest.approx(3 - 1.0)
    # beside the whole autoencoder it is its error alone
    over = [table.gain_over_ae_low["hog"], table.gain_over_ae_high["hog"]]
    assert over == pytest.approx([7 - 1.0, 7 + 1.0])
    # which is its own control: there is no error between the two
    assert table.loc["ae", ["gain", "low", "high"]].tolist() == [0, 0, 0]
    assert table.loc["ae", ["gain_over_ae_low", "gain_over_ae_high"]].tolist() == [0, 0]


def test_verdicts():
    table = equal(
        *curve(half=0.1),
        line("better", 20, 5.0, half=0.5),
        line("blurred", 20, 5.7, half=0.5),
        line("like ae", 23.5, 9.8, half=0.5),
        line("worse", 22, 12.0, half=0.5),
        line("too sharp", 24.1, 1.0, half=0.5),
        line("too blurred", 17.9, 1.0, half=0.5),
    )
    assert table.verdict.to_dict() == {
        "better": "not explained by blur",
        "blurred": "explained by blur",
        "like ae": "no gain",
        "worse": "no gain",
        "too sharp": "no control",
        "too blurred": "no control",
        "ae": "no gain",
    }
    assert table.loc["too sharp", ["control", "gain", "low", "high"]].isna().all()
    assert table.gain_over_ae["too sharp"] == 9.0


def test_a_seed_has_its_own_curve():
    table = equal(
        *curve(seed=0),
        *curve(seed=1, lift=1.0),
        line("hog", 19, 3.0, seed=0),
        line("hog", 19, 3.0, seed=1),
        line("kl", 19, 3.0, seed=1),
    )
    assert table.control.to_dict() == {"kl": 6.0, "hog": 5.5, "ae": 10.5}
    assert table.gain.to_dict() == {"kl": 3.0, "hog": 2.5, "ae": 0.0}
    assert table.gain_over_ae.to_dict() == {"kl": 8.0, "hog": 7.5, "ae": 0.0}
    assert table.seeds.to_dict() == {"kl": 1, "hog": 2, "ae": 2}


def test_a_seed_without_controls_has_the_mean_curve_and_shares_its_error():
    lines = [*curve(seed=0, half=0.5), *curve(seed=1, lift=1.0, half=0.5)]
    for seed in (2, 3):
        lines += [line("ae", 24, 10.5, seed=seed), line("hog", 19, 3.0, seed=seed)]
    table = equal(*lines)
    assert table.control["hog"] == 5.5
    assert table.gain_over_ae["hog"] == 7.5
    # each control is a mean of two seeds, hog's are on the middle between two; more seeds of hog
    # make that no smaller
    half = 0.5 / math.sqrt(2) / math.sqrt(2)
    assert table.low["hog"] == pytest.approx(2.5 - half)


def test_the_interval_over_seeds_is_the_wider_of_two():
    scores = [3.0, 3.4, 3.8]
    lines = []
    for seed, score in enumerate(scores):
        lines += [*curve(seed=seed), line("hog", 19, score, seed=seed, half=0.1)]
    table = equal(*lines)
    student = stats.t.ppf(0.975, 2) * 0.4 / math.sqrt(3)
    assert table.low["hog"] == pytest.approx(1.6 - student)
    assert table.gain_over_ae_high["hog"] == pytest.approx(6.6 + student)
    # two seeds tell no spread: that of the scores' own intervals
    table = equal(*lines[:8])
    assert table.low["hog"] == pytest.approx(1.8 - 0.1 / math.sqrt(2))
    # wide intervals of scores count where seeds agree
    table = equal(*[entry | {"kid_low": -10.0, "kid_high": 20.0} for entry in lines])
    assert table.low["hog"] < 1.6 - student


def test_a_seed_beyond_its_curve_is_no_part_of_the_mean():
    lines = [*curve(seed=0), *curve(seed=1)]
    lines += [line("hog", 19, 3.0, seed=0), line("hog", 25, 9.0, seed=1)]
    table = equal(*lines)
    assert table.loc["hog", ["psnr", "score", "control", "gain", "seeds"]].tolist() == [
        *(19, 3, 5, 2, 1)
    ]


def test_where_no_seed_has_a_whole_autoencoder_there_is_no_verdict_on_it():
    lines = [*curve(seed=0), line("hog", 20, 6.5, seed=1), line("kl", 20, 5.0, seed=1)]
    table = equal(*lines)
    assert math.isnan(table.gain_over_ae["hog"])
    assert table.verdict["hog"] == "no control"
    assert table.verdict["kl"] == "not explained by blur"


def test_lines_without_a_score_are_left_out_and_said():
    lines = [*curve(), line("hog", 19, 3.0), line("kl", 19, math.nan)]
    table = equal(*lines)
    assert "kl" not in table.index
    assert table.attrs == {"score": "kid", "left_out": [("kl", 0)]}
    with pytest.raises(ValueError, match="needs scored rows of kind 'control'"):
        equal(*lines[2:])
    with pytest.raises(ValueError, match="and the row 'ae'"):
        equal(*lines[:2], lines[3])
    with pytest.raises(ValueError, match=r"needs columns \['kid_gap'\]"):
        equal(*lines, score="kid_gap")
    gap = pd.DataFrame(lines).rename(columns=lambda name: name.replace("kid", "kid_gap"))
    assert at_equal_psnr(gap, score="kid_gap").score["hog"] == 3.0


def test_an_entry_of_the_card_has_an_interval_over_seeds_alone_and_more_may_be_better():
    def lines(seed, probe):
        points = {"ae": (25, 0.5), "a": (18, 0.4), "hog": (20, probe)}
        for row, (psnr, value) in points.items():
            kind = "control" if row == "a" else "rung"
            yield {"row": row, "seed": seed, "kind": kind, "psnr": psnr, "probe_top1": value}

    table = pd.DataFrame([*lines(0, 0.55), *lines(1, 0.56), *lines(2, 0.57)])
    result = at_equal_psnr(table, score="probe_top1").loc["hog"]
    control = 0.4 + 0.1 * 2 / 7
    assert result["gain"] == pytest.approx(0.56 - control)
    assert result["gain_over_ae"] == pytest.approx(0.06)
    margin = stats.t.ppf(0.975, 2) * 0.01 / 3**0.5
    assert result["low"] == pytest.approx(0.56 - control - margin)
    assert result["verdict"] == "not explained by blur"
    alone = at_equal_psnr(table[table["seed"] == 0], score="probe_top1").loc["hog"]
    assert alone["verdict"] == "no interval"
    loss = table.rename(columns={"probe_top1": "diffusion_loss"})
    turned = at_equal_psnr(loss, score="diffusion_loss").gain["hog"]
    assert turned == pytest.approx(-result["gain"])


def test_mean_scores_are_over_seeds_and_by_psnr():
    lines = [*curve(seed=0, half=0.2), *curve(seed=1, lift=1.0, half=0.2), line("hog", 19, 3.0)]
    means = mean_scores(pd.DataFrame(lines))
    assert list(means.index) == ["control 18 dB", "hog", "control 20 dB", "ae"]
    assert means["score"].tolist() == [4.5, 3.0, 6.5, 10.5]
    assert means["on_curve"].tolist() == [True, False, True, True]
    assert means["high"]["ae"] == pytest.approx(10.5 + 0.2 / math.sqrt(2))
    assert means["seeds"].tolist() == [2, 1, 2, 2]
