"""What a study will do without is said by the images, before anything is trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maetok_lab.analysis.gmm import gmm_curve
from maetok_lab.data.images import open_images, open_splits
from maetok_lab.experiments.needs import shortfalls


def fill(folder: Path, count: int, *, blank: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(str(folder).encode()))
    for i in range(count):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels * (not blank)).save(folder / f"{'blank' * blank}{i:03}.png")


def test_enough_images_have_no_shortfalls(tmp_path):
    for split in ("train", "val", "test"):
        for name in "ab":
            fill(tmp_path / split / name, 40)
    images = open_splits(tmp_path, image_size=8)
    assert shortfalls(images, components=[1, 50]) == []
    emoji = {split: open_images("emoji", split=split, image_size=8) for split in ("train", "test")}
    assert shortfalls(emoji, components=[1, 50]) == []


def test_each_shortfall_is_a_line(tmp_path):
    fill(tmp_path / "train", 30)
    fill(tmp_path / "train", 5, blank=True)
    fill(tmp_path / "val", 30)
    fill(tmp_path / "test", 12)
    images = open_splits(tmp_path, image_size=8)
    components = [1, 20, 28, 50, 100]
    lines = shortfalls(images, components=components, score_every=2)
    assert lines == [
        "one class: no linear probe, and no accuracy of maps",
        "6 images of test to score: a KID needs 8 a side",
        "4 training images copied from others: mixtures and maps take one of each",
        "25 distinct images to fit: no mixtures of 28, 50, 100 Gaussians",
    ]
    *_, line = shortfalls(images, components=components, heldout=0.0)
    assert line == "31 distinct images to fit: no mixtures of 50, 100 Gaussians"


def test_the_mixtures_that_are_foretold_are_those_that_are_fitted(tmp_path):
    for split in ("train", "val", "test"):
        for name in "ab":
            fill(tmp_path / split / name, 20)
    latents = torch.randn(40, 4, 3, generator=torch.Generator().manual_seed(0))
    images = open_splits(tmp_path, image_size=8)
    for options, possible in (({}, 32), ({"heldout_latents": latents}, 40)):
        components = [possible, possible + 1]
        with pytest.warns(UserWarning, match=f"mixtures of {possible + 1} components are left out"):
            gmm_curve(latents, components, restarts=1, dimensions=2, **options)
        heldout = {"heldout": 0.0} if options else {}
        (line,) = shortfalls(images, components=components, **heldout)
        assert line == f"{possible} distinct images to fit: no mixtures of {possible + 1} Gaussians"


@pytest.mark.parametrize("split", ["val", "test"])
def test_only_splits_that_are_scored_have_to_be_large(tmp_path, split):
    for name in ("train", "val", "test"):
        for label in "ab":
            fill(tmp_path / name / label, 20 if name != split else 2)
    images = open_splits(tmp_path, image_size=8)
    (line,) = shortfalls(images)
    assert line.startswith(f"4 images of {split} to score")
