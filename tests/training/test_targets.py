"""Training with several targets at once: all are logged, nothing of a teacher is saved, and
stopping changes nothing.
"""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from maetok_lab.data import images as images_module
from maetok_lab.data.images import open_images
from maetok_lab.nets import FeatureNet
from maetok_lab.runs import Run
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.loading import load_auxiliary
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.tokenizer.text import VOCABULARY, caption_tokens
from maetok_lab.tokenizer.towers import TowerConfig
from maetok_lab.training.objective import Objective
from maetok_lab.training.optim import Ema, make_optimizers, moved_parameters
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.tokenizer import train_tokenizer

TOWER = TowerConfig(width=16, depth=1, num_heads=2)
MODEL = TokenizerConfig(
    image_size=16,
    patch_size=8,
    num_latent_tokens=4,
    latent_dim=2,
    encoder=TOWER,
    decoder=TOWER,
    modulation_init=1.0,
)
ALL = ("hog", "pixel", "semantic")
AUXILIARY = tuple(
    AuxiliaryConfig(target=name, tower=TOWER, weight=weight)
    for name, weight in zip(ALL, (1.0, 0.5, 0.25))
)
TRAINING = TokenizerTraining(
    model=MODEL,
    targets=AUXILIARY,
    losses=LossConfig(perceptual="none"),
    num_steps=5,
    batch_size=4,
    precision="fp32",
    ema_decay=0.9,
    log_every=1,
    save_every=2,
    workers=0,
    crop="scale",
)


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Ten pictures in a folder that are decoded when asked, and one for val."""
    for i in range(11):
        split = "train" if i < 10 else "val"
        path = tmp_path / "images" / split / "ab"[i % 2] / f"red apple {i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(
            np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        ).save(path)
    monkeypatch.setattr(images_module, "_IN_MEMORY", 0)
    return open_images(tmp_path / "images", split="train", image_size=16)


def test_every_target_is_logged_and_saved_without_its_network(images, tmp_path):
    run = Run.open("all", TRAINING, root=tmp_path)
    records = list(train_tokenizer(TRAINING, images, run, cpu=True))
    assert set(records[-1].losses) >= {f"auxiliary/{name}" for name in ALL}
    assert -1 <= records[-1].losses["auxiliary/semantic"] <= 1
    checkpoint = run.load_checkpoint()
    saved = {name.split(".")[0] for name in checkpoint.tensors["auxiliary"]}
    assert saved == set(ALL)
    kept = sum(value.numel() for group in checkpoint.tensors.values() for value in group.values())
    assert kept < 500_000  # the teacher alone has 3.4 million values
    assert set(load_auxiliary("all", root=tmp_path)) == set(ALL)


def test_optimizer_and_average_have_nothing_of_the_teacher():
    objective = Objective(TRAINING)
    assert not any(isinstance(module, FeatureNet) for module in objective.modules())
    teacher = objective.auxiliary["semantic"].target.net
    optimizers = make_optimizers(
        TRAINING.optimizer, {"tokenizer": objective.tokenizer, "auxiliary": objective.auxiliary}
    )
    moved = set(map(id, moved_parameters(optimizers.values())))
    assert not moved & set(map(id, teacher.parameters()))
    assert not any(p.requires_grad for p in teacher.parameters())
    averaged = Ema(objective.tokenizer, 0.9).module
    assert not any(isinstance(module, FeatureNet) for module in averaged.modules())


def test_a_stop_with_workers_crops_and_three_targets_changes_nothing(images, tmp_path):
    whole = Run.open("whole", TRAINING, root=tmp_path)
    list(train_tokenizer(TRAINING, images, whole, cpu=True))
    cut = Run.open("cut", TRAINING, root=tmp_path)
    for record in train_tokenizer(TRAINING, images, cut, cpu=True):
        if record.step == 3:
            break
    again = Run.open("cut", TRAINING, root=tmp_path)
    helped = dataclasses.replace(TRAINING, workers=2)
    assert [r.step for r in train_tokenizer(helped, images, again, cpu=True)] == [3, 4, 5]
    mine, theirs = whole.load_checkpoint(), again.load_checkpoint()
    for group, tensors in mine.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(value, theirs.tensors[group][name]), f"{group} {name}"


def test_captions_reach_a_text_target_in_the_order_of_the_images(images, tmp_path, monkeypatch):
    pytest.importorskip("open_clip")
    seen = []
    call = images_module.ImageSource.read
    monkeypatch.setattr(
        images_module.ImageSource, "read", lambda *a, **o: seen.append(call(*a, **o)) or seen[-1]
    )
    asked = []
    monkeypatch.setattr(
        "maetok_lab.training.autoencoding.caption_tokens",
        lambda texts: asked.append(texts) or caption_tokens(texts),
    )
    text = (AuxiliaryConfig(target="text", tower=TOWER),)
    config = dataclasses.replace(TRAINING, targets=text, num_steps=2)
    run = Run.open("text", config, root=tmp_path)
    records = list(train_tokenizer(config, images, run, cpu=True))
    assert asked == [[images.captions[i] for i in pictures.indices] for pictures in seen[:2]]
    assert records[0].losses["auxiliary/text"] == pytest.approx(
        np.log(VOCABULARY), rel=0.05
    )  # at first: no idea


def test_a_teacher_that_is_missing_ends_the_training_before_the_first_step(
    images, tmp_path, monkeypatch
):
    targets = (AuxiliaryConfig(target="semantic", tower=TOWER, weights="nowhere.safetensors"),)
    config = dataclasses.replace(TRAINING, targets=targets)
    run = Run.open("a", config, root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no weights at nowhere\.safetensors"):
        next(train_tokenizer(config, images, run, cpu=True))
    assert run.checkpoint_steps() == []


def test_hog_is_the_same_inside_autocast():
    target = Objective(dataclasses.replace(TRAINING, targets=AUXILIARY[:1])).auxiliary["hog"].target
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = target(pictures)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, target(pictures))
