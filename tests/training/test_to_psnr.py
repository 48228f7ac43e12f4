"""A training that stops at a stated PSNR stops at the first checkpoint that has it, and is found
again.
"""

import pytest

from maetok_lab.config import override
from maetok_lab.runs import Run
from maetok_lab.training.presets import ladder_training
from maetok_lab.training.tokenizer import train_to_psnr, validation_psnr


@pytest.fixture
def config():
    """Eight steps of a plain autoencoder, a checkpoint every second."""
    return override(
        ladder_training("test", "ae", num_steps=8),
        {"save_every": 2, "batch_size": 4, "precision": "fp32"},
    )


def train(config, pictures, root, target, name="a"):
    with Run.open(name, config, root=root) as run:
        steps = [
            r.step
            for r in train_to_psnr(
                config, pictures, run, validation=pictures, target=target, cpu=True
            )
        ]
    return run, steps


def test_it_stops_at_the_first_checkpoint_that_reaches_the_target(tmp_path, make_pictures, config):
    pictures = make_pictures(12, 64)
    run, steps = train(config, pictures, tmp_path, 0.0)
    assert steps == [1, 2]
    assert run.summary["steps"] == 2
    assert run.summary["images"] == 8
    assert run.summary["val_psnr"] == validation_psnr(run, pictures)
    assert run.summary["target_psnr"] == 0
    assert train(config, pictures, tmp_path, 0.0)[1] == []
    with pytest.raises(ValueError, match=r"stopped at 0\.0 dB, not at 5\.0 dB"):
        train(config, pictures, tmp_path, 5.0)


def test_a_target_that_is_never_reached_leaves_a_whole_training(tmp_path, make_pictures, config):
    run, steps = train(config, make_pictures(12, 64), tmp_path, 99.0)
    assert steps == list(range(1, 9))
    assert run.finished
    assert "target_psnr" not in run.summary


def test_a_target_that_the_last_step_reaches_is_met(tmp_path, make_pictures, config, monkeypatch):
    ends = iter([1.0, 2.0, 3.0, 9.0])  # at steps 2, 4, 6 and 8, the last
    monkeypatch.setattr(
        "maetok_lab.training.tokenizer.validation_psnr", lambda run, images: next(ends)
    )
    run, steps = train(config, make_pictures(12, 64), tmp_path, 5.0)
    assert steps == list(range(1, 9))
    assert (run.summary["val_psnr"], run.summary["target_psnr"]) == (9.0, 5.0)


def test_a_stop_between_checkpoint_and_summary_is_made_good(tmp_path, make_pictures, config):
    pictures = make_pictures(12, 64)
    run, _ = train(config, pictures, tmp_path, 0.0)
    (run.folder / "summary.json").unlink()
    again, steps = train(config, pictures, tmp_path, 0.0)
    assert steps == []
    assert again.summary["steps"] == 2
