"""What is shipped under data/pretrained is what its index says, loads in two lines, and scores what
the index says.
"""

import hashlib
import json

import pytest
import torch

from maetok_lab.data.images import open_images
from maetok_lab.data.latents import load_latent_space
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.evaluation.pixels import psnr
from maetok_lab.generation.images import generate, reconstruct
from maetok_lab.runs import weights
from maetok_lab.tokenizer.loading import load_auxiliary, load_tokenizer

SHIPPED = weights.SHIPPED
LARGEST_FILE, LARGEST_SUM = 14e6, 16e6


@pytest.fixture(scope="module")
def index():
    return json.loads((SHIPPED / "index.json").read_text(encoding="utf-8"))


def test_the_files_are_those_of_the_index_and_small(index):
    files = {path.relative_to(SHIPPED).as_posix(): path for path in SHIPPED.rglob("*.safetensors")}
    assert {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    } == index["sha256"]
    sizes = [path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()]
    assert max(sizes) <= LARGEST_FILE
    assert sum(sizes) <= LARGEST_SUM


@pytest.mark.parametrize(
    ("name", "score"), [("tokenizer", "reconstruction"), ("plain", "plain reconstruction")]
)
def test_the_tokenizers_reconstruct_test_images_as_well_as_the_index_says(index, name, score):
    tokenizer = load_tokenizer(f"shipped/{name}")
    test = open_images("emoji", split="test", image_size=tokenizer.config.image_size)
    images = test.batch(torch.arange(len(test)))[0]
    assert psnr(reconstruct(tokenizer, images), images).mean().item() == pytest.approx(
        index["scores"][score]["metrics"]["psnr"], abs=0.01
    )


def test_the_page_of_the_data_has_the_scores_of_the_index(index):
    page = (SHIPPED.parent / "README.md").read_text(encoding="utf-8")
    rows = {
        "masked tokenizer, PSNR": ("reconstruction", "psnr", "{:.2f}", " dB"),
        "masked tokenizer, SSIM": ("reconstruction", "ssim", "{:.3f}", ""),
        "plain autoencoder, PSNR": ("plain reconstruction", "psnr", "{:.2f}", " dB"),
        "plain autoencoder, SSIM": ("plain reconstruction", "ssim", "{:.3f}", ""),
        "KID of 529 samples": ("generation", "kid_efflite2", "{:.3f}", ""),
    }
    for title, (score, metric, form, unit) in rows.items():
        result = index["scores"][score]
        low, high = (form.format(end) for end in result["intervals"][metric])
        value = form.format(result["metrics"][metric])
        line = next(line for line in page.splitlines() if line.startswith(f"| {title}"))
        assert f"| {value}{unit} ({low} to {high}) |" in line


def test_the_plain_autoencoder_is_of_the_same_size_and_saw_as_many_images(index):
    assert load_tokenizer("shipped/plain").config == load_tokenizer("shipped/tokenizer").config
    runs = {name: run["config"] for name, run in index["runs"].items()}
    plain = runs["pretrained-plain"]
    stages = runs["pretrained-tokenizer"], runs["pretrained-tokenizer-tuned"]
    assert (plain["masking"]["ratio"], plain["targets"]) == ("none", [])
    seen = [config["num_steps"] * config["batch_size"] for config in (plain, *stages)]
    assert seen[0] == sum(seen[1:])


def test_the_diffusion_model_belongs_to_the_tokenizer_and_draws_pictures():
    tokenizer, model = load_tokenizer("shipped/tokenizer"), load_diffusion("shipped/diffusion")
    images = generate(
        model, tokenizer, load_latent_space("shipped/diffusion"), torch.tensor([0, 1]), num_steps=4
    )
    assert images.shape == (2, 3, tokenizer.config.image_size, tokenizer.config.image_size)
    assert images.std() > 0.1


def test_its_auxiliary_decoders_came_along():
    assert set(load_auxiliary("shipped/tokenizer")) == {"hog", "semantic"}


@pytest.mark.parametrize("name", ["shipped/nothing", "shipped/"])
def test_another_name_says_what_there_is(name):
    with pytest.raises(FileNotFoundError, match="not among what is shipped"):
        load_tokenizer(name)
