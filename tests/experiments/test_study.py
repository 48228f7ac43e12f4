"""The study: a row has every number, whatever is finished is found again, tables do not mix."""

import dataclasses

import pandas as pd
import pytest

from maetok_lab.analysis.card import cards_of
from maetok_lab.config import override
from maetok_lab.evaluation.protocol import EvalResult
from maetok_lab.experiments import study as study_file
from maetok_lab.experiments.cards import SAMPLES_FILE
from maetok_lab.experiments.comparison import GAP_FILE
from maetok_lab.experiments.ladder import Ladder
from maetok_lab.experiments.study import (
    STUDIES,
    StudyRow,
    check_row,
    in_order,
    rung_table,
    ship_study,
    study_means,
    study_of,
    study_row,
    study_table,
)
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.training.meanings import MEANINGS
from maetok_lab.training.objective import Objective
from maetok_lab.training.presets import DECODER_TUNING, TOKENIZER_TRAINING
from maetok_lab.workflow.spec import read_spec

STUDY = study_of("test")
IMAGES = "images-of-a-test"


# Names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ae", "all-post", "ae-mask-tuned", "control-20.5dB", "13a-256"])
def test_a_row_is_a_rung_one_with_a_second_stage_or_a_control(name):
    assert check_row(name) is None  # any other name raises


@pytest.mark.parametrize(
    ("name", "message"),
    [("al", "did you mean 'all'"), ("all-post-tuned", "all-post"), ("control-dB", "control-dB")],
)
def test_another_name_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        check_row(name)


def test_the_shipped_sweep_has_the_studys_rows(repository):
    spec = read_spec(repository / "notebooks" / "11_study_row.toml")
    rows = {entry["row"] for entry in spec.entries}
    for row in rows:
        check_row(row)
    controls = {row for row in rows if row.startswith("control-")}
    shipped = pd.read_csv(study_file.SHIPPED_STUDY)
    assert controls == set(shipped["row"][shipped["kind"] == "control"])
    assert len(spec.entries) == 3 * len(rows)
    # so that a sweep that is stopped has all rows of the first seeds
    assert [entry["seed"] for entry in spec.entries] == sorted(e["seed"] for e in spec.entries)


def test_means_of_the_shipped_study_are_over_its_seeds():
    shipped = pd.read_csv(study_file.SHIPPED_STUDY)
    means = study_means()
    assert set(means.index) == set(shipped["row"])
    assert means.loc["ae", "seeds"] == 3
    for row in ("ae", "all-tuned"):
        mine = shipped[shipped["row"] == row]
        assert means.loc[row, "kid"] == pytest.approx(mine["kid"].sum() / len(mine))


def test_the_table_of_rungs_has_words_for_all_and_numbers_for_the_studys():
    table = rung_table()
    assert list(table.index) == list(MEANINGS)
    assert table.loc["kl", "what changes"] == MEANINGS["kl"].change.replace("`ae`", "ae")
    assert not table["what changes"].str.contains("`").any()
    measured = table.index[table["PSNR in the study, dB"].notna()]
    assert set(measured) == set(study_means().index) & set(MEANINGS)
    assert table.loc["ae", "KID in the study"] == study_means().loc["ae", "kid"]


def test_rows_are_in_the_order_of_the_rungs_and_controls_come_last():
    rows = ["control-20dB", "all-post", "control-9.5dB", "denoise", "all", "ae", "kl-1e-2"]
    table = pd.DataFrame({"row": [*rows, "ae"], "seed": [0] * len(rows) + [1]})
    ordered = in_order(table.sample(frac=1, random_state=0))
    expected = ["ae", "ae", "all", "all-post", "kl-1e-2", "denoise", "control-9.5dB"]
    assert ordered["row"].tolist() == [*expected, "control-20dB"]
    assert ordered["seed"].tolist()[:2] == [0, 1]


# Tables ------------------------------------------------------------------------------------------


def finished_row(root, row="ae", seed=0, images=IMAGES, study=STUDY, **numbers):
    """A row's run without what it was made from."""
    config = StudyRow(row=row, seed=seed, images=images, tokenizer="t", study=study)
    with Run.open(f"study-{row}-{images}-s{seed}-{study.dimensions}", config, root=root) as run:
        run.finish({"kind": "rung", "psnr": 20.0, **numbers})
    return run


def test_a_table_holds_the_rows_of_one_study_and_one_set_of_images(tmp_path):
    finished_row(tmp_path, kid=1.0)
    finished_row(tmp_path, "all", seed=1, kid=2.0)
    finished_row(tmp_path, images="others")
    finished_row(tmp_path, study=dataclasses.replace(STUDY, dimensions=9))
    config = StudyRow(row="kl", seed=0, images=IMAGES, tokenizer="t", study=STUDY)
    Run.open("study-kl-unfinished", config, root=tmp_path).close()
    table = study_table(STUDY, IMAGES, root=tmp_path)
    assert table[["row", "seed", "kid"]].to_numpy().tolist() == [["ae", 0, 1.0], ["all", 1, 2.0]]


def test_no_finished_row_is_one_line_that_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="make some with 11_study_row"):
        study_table(STUDY, IMAGES, root=tmp_path)


def test_what_ships_is_read_again_and_ones_own_rows_go_over_it(tmp_path, monkeypatch):
    monkeypatch.setattr(study_file, "SHIPPED_STUDY", tmp_path / "study.csv")
    finished_row(tmp_path, kid=1.0, tokenizer="ladder-ae-test-s0")
    finished_row(tmp_path, "kl", kid=1.5)
    ship_study(study_table(STUDY, IMAGES, root=tmp_path), STUDY, IMAGES)
    shipped = study_table(STUDY, IMAGES, results="shipped", root=tmp_path / "nothing")
    assert "tokenizer" not in shipped
    assert shipped["kid"].tolist() == [1.0, 1.5]

    own = tmp_path / "own"
    finished_row(own, "kl", kid=1.25)
    finished_row(own, "all", kid=0.5)
    both = study_table(STUDY, IMAGES, results="both", root=own)
    assert both[["row", "kid"]].to_numpy().tolist() == [["ae", 1.0], ["kl", 1.25], ["all", 0.5]]
    alone = study_table(STUDY, IMAGES, results="runs", root=own)
    assert alone["row"].tolist() == ["kl", "all"]


@pytest.mark.parametrize(
    ("study", "images", "message"),
    [
        (STUDY, "others", "another images"),
        (dataclasses.replace(STUDY, dimensions=9), IMAGES, "another study"),
    ],
)
def test_shipped_rows_of_other_images_or_another_study_are_refused(
    tmp_path, monkeypatch, study, images, message
):
    monkeypatch.setattr(study_file, "SHIPPED_STUDY", tmp_path / "study.csv")
    finished_row(tmp_path, kid=1.0)
    ship_study(study_table(STUDY, IMAGES, root=tmp_path), STUDY, IMAGES)
    with pytest.raises(ValueError, match=message):
        study_table(study, images, results="shipped", root=tmp_path)


def test_the_rows_that_come_with_the_library_are_those_of_preset_tiny():
    images = Ladder("tiny").images["train"].fingerprint
    table = study_table(STUDIES["tiny"], images, results="shipped")
    assert set(table["kind"]) == {"rung", "control"}
    assert table.groupby(["row", "seed"]).size().eq(1).all()
    assert table[["psnr", "kid", "kid_low", "kid_high", "kid_gap", "viv"]].notna().all().all()
    rungs = table[table["kind"] == "rung"]
    assert rungs["row"].nunique() >= 12
    preset = TOKENIZER_TRAINING["tiny"]
    steps = preset.num_steps + DECODER_TUNING["tiny"]["num_steps"]
    assert set(rungs["images"]) == {steps * preset.batch_size}
    for row in table["row"]:
        check_row(row)


# Rows --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three rows at preset test."""
    ladder = Ladder("test", seed=3, root=tmp_path_factory.mktemp("runs"), device="cpu")
    runs = {}
    for name in ("ae", "ae-mask-post", "control-8dB"):
        runs[name] = study_row(name, ladder, STUDY)
    table = study_table(STUDY, ladder.images["train"].fingerprint, root=ladder.root)
    return ladder, runs, table.set_index("row")


@pytest.mark.slow
def test_every_row_has_every_number(made):
    ladder, runs, table = made
    assert table.index.tolist() == list(runs)
    assert table["kind"].tolist() == ["rung", "rung", "control"]
    numbers = ["psnr", "val_psnr", "kid", "kid_low", "kid_high", "kid_gap", "probe_top1", "viv"]
    assert table[[*numbers, "gmm_nll_5", "diffusion_loss"]].notna().all().all()
    assert set(table["gmm_dimensions"]) == {STUDY.dimensions}
    assert table["images"]["ae"] == table["images"]["ae-mask-post"] == 30 * 8
    for name, run in runs.items():
        flow = Run(ladder.root / run.summary["flow"])
        assert flow.summary["steps"] == STUDY.comparison.diffusion_steps
        assert flow.config["seed"] == ladder.seed
        card = cards_of([ladder.root / run.summary["card"]])[run.summary["card"]]
        assert card.attrs["settings"]["seed"] == ladder.seed
        assert card["value"]["probe_top1"] == table["probe_top1"][name]
        score = ladder.score(Run(ladder.root / run.summary["tokenizer"]))
        assert table["probe_top1"][name] == score.metrics["probe_top1"]


@pytest.mark.slow
def test_the_gap_is_to_the_rows_own_reconstructions(made):
    ladder, runs, table = made
    references = {SAMPLES_FILE: set(), GAP_FILE: set()}
    for name, run in runs.items():
        folder = ladder.root / f"{run.summary['tokenizer']}-evaluation"
        for file, column in ((SAMPLES_FILE, "kid"), (GAP_FILE, "kid_gap")):
            result = EvalResult.load(folder / file)
            assert result.metrics["kid_efflite2"] == table[column][name]
            references[file].add(result.protocol.reference_sha256)
    assert len(references[SAMPLES_FILE]) == 1  # the test images
    assert len(references[GAP_FILE]) == len(runs)


@pytest.mark.slow
def test_a_posts_decoder_learnt_from_regenerated_latents_and_its_encoder_stood_still(made):
    ladder, runs, _ = made
    tuned = Run(ladder.root / runs["ae-mask-post"].summary["tokenizer"])
    first, flow = [Run(ladder.root / parent["run"]) for parent in tuned.provenance["parents"]]
    assert tuned.config["regeneration"]["diffusion"] == flow.fingerprint
    assert tuned.config["masking"]["ratio"] == "none"
    before, after = load_tokenizer(first.folder), load_tokenizer(tuned.folder)
    images, _ = ladder.images["test"].batch([0, 1])
    assert before.encode(images).equal(after.encode(images))
    assert not before(images).equal(after(images))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "met"), [(0.0, True), (99.0, False)])
def test_a_control_is_a_plain_autoencoder_stopped_at_its_psnr(tmp_path, made, target, met):
    ladder, *_ = made
    own = Ladder("test", seed=3, root=tmp_path, device="cpu")
    row = study_row(f"control-{target:g}dB", own, STUDY)
    control = Run(own.root / row.summary["tokenizer"])
    assert control.config["targets"] == []
    assert row.summary["kind"] == "control"
    if met:  # at the first look
        assert control.summary["val_psnr"] >= control.summary["target_psnr"] == target
        assert control.summary["steps"] == STUDY.comparison.check_every
    else:  # the whole training, and no claim to have met anything
        assert "target_psnr" not in control.summary
        plain = Run(ladder.root / ladder.name("ae"))
        assert control.summary["steps"] == plain.summary["steps"]


@pytest.mark.slow
def test_a_finished_row_computes_nothing(made, monkeypatch):
    ladder, runs, _ = made
    monkeypatch.setattr(Objective, "forward", lambda *_: pytest.fail("it trained again"))
    monkeypatch.setattr(
        "maetok_lab.experiments.comparison.generate",
        lambda *_, **__: pytest.fail("it sampled again"),
    )
    for name, run in runs.items():
        assert study_row(name, ladder, STUDY).summary == run.summary
    # another study of the same tokenizers is another run: the same name is refused
    with pytest.raises(ValueError, match="dimensions"):
        study_row("ae", ladder, override(STUDY, {"dimensions": 9}))
