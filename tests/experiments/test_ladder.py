"""The ladder: rows that saw the same number of images, scored on others, found again when done."""

import runpy

import numpy as np
import pytest
import torch
from PIL import Image

from maetok_lab.evaluation.pixels import psnr
from maetok_lab.experiments.ladder import Ladder, climb, markdown, stages
from maetok_lab.generation.images import reconstruct
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.training.objective import Objective


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Reddish and bluish pictures in two classes, 12 to train on and 6 for each other split."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for i in range(count):
            path = folder / split / ("red", "blue")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            pixels[..., 2 * (i % 2)] //= 4
            Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def climbed(source, tmp_path_factory):
    """A ladder of two rungs, its table, and what it said."""
    ladder = Ladder("test", source=source, root=tmp_path_factory.mktemp("runs"), device="cpu")
    lines = []
    return ladder, climb([ladder], rungs=["kl", "hog"], write=lines.append), lines


def test_a_row_for_each_rung_with_and_without_tuning_on_the_same_number_of_images(climbed):
    ladder, table, lines = climbed
    assert list(zip(table["rung"], table["tuned"])) == [
        ("kl", False),
        ("kl", True),
        ("hog", False),
        ("hog", True),
    ]
    assert table["run"].tolist() == [
        f"ladder-{name}"
        for name in (
            f"kl-{ladder.suffix}",
            f"kl-{ladder.suffix}-tuned",
            f"hog-{ladder.suffix}",
            f"hog-{ladder.suffix}-tuned",
        )
    ]
    assert set(table["images"]) == {30 * 8}
    tuned, parent = (
        Run(ladder.root / table["run"][1]),
        Run(ladder.root / f"{table['run'][0]}-stage1"),
    )
    assert [run.name for run in stages(tuned)] == [parent.name, tuned.name]
    assert (parent.summary["steps"], tuned.summary["steps"]) == (20, 10)
    assert tuned.config["latent_noise"] == 0
    assert parent.config["losses"]["perceptual"] == tuned.config["losses"]["perceptual"] == "none"
    assert [line.partition(":")[0] for line in lines] == table["run"].tolist()


def test_scores_are_of_the_test_images_and_stay_with_the_row(climbed):
    ladder, table, _ = climbed
    run = Run(ladder.root / table["run"][3])
    originals = ladder.images["test"].batch(slice(None))[0]
    expected = psnr(reconstruct(load_tokenizer(run.folder), originals), originals).mean().item()
    assert table["psnr"][3] == pytest.approx(expected, abs=1e-6)
    result = ladder.score(run)
    assert (run.folder / "ladder.json").exists()
    assert result.protocol.reference_sha256 == ladder.images["test"].fingerprint
    assert (result.protocol.num_images, result.protocol.perceptual) == (6, "SqueezePerceptual")
    low, high = result.intervals["probe_top1"]
    assert low <= result.metrics["probe_top1"] <= high
    assert result.metrics["probe_majority"] == 0.5


def test_tuning_leaves_the_latents_of_its_own_first_stage(climbed):
    ladder, table, _ = climbed
    tuned = Run(ladder.root / table["run"][3])
    first, second = (
        load_tokenizer(run.folder).encode(ladder.images["val"].batch(range(4))[0])
        for run in stages(tuned)
    )
    assert torch.equal(first, second)
    assert ladder.latents(tuned, "train").views == 2
    assert ladder.latents(tuned, "test").views == 1


def test_climbing_again_trains_and_scores_nothing(climbed, source, monkeypatch):
    ladder, table, _ = climbed
    monkeypatch.setattr(Objective, "forward", lambda *_: pytest.fail("it trained again"))
    monkeypatch.setattr(
        "maetok_lab.experiments.ladder.linear_probe",
        lambda *_, **__: pytest.fail("it scored again"),
    )
    again = climb(
        [Ladder("test", source=source, root=ladder.root, device="cpu")], rungs=["kl", "hog"]
    )
    assert again.equals(table)


def test_the_command_prints_the_table(climbed, source, repository, capsys):
    ladder, table, _ = climbed
    main = runpy.run_path(str(repository / "benchmarks" / "ladder.py"))["main"]
    main(
        [
            "--preset",
            "test",
            "--rungs",
            "kl",
            "hog",
            "--source",
            str(source),
            "--runs",
            str(ladder.root),
            "--device",
            "cpu",
        ]
    )
    said = capsys.readouterr().out
    assert markdown(table) in said
    assert f"| kl | True | 0 | 240 | {table['psnr'][1]:.2f} |" in said


def test_an_unknown_rung_is_an_error_before_anything_is_trained(source, tmp_path):
    ladder = Ladder("test", source=source, root=tmp_path, device="cpu")
    with pytest.raises(
        ValueError, match="unknown rung of the ladder 'sematic'; did you mean 'semantic'"
    ):
        climb([ladder], rungs=["ae", "sematic"])
    assert not any(tmp_path.iterdir())
