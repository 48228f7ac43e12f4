"""Tokenizers of every origin look alike, and everything that takes one takes all of them."""

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from maetok_lab.analysis.card import CardSettings, diffusability_card
from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.evaluation.reconstruction import evaluate_reconstruction
from maetok_lab.generation.images import reconstruct
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.rng import generator
from maetok_lab.runs import Run
from maetok_lab.runs.weights import write_weights
from maetok_lab.tokenizer.foreign import GridTokenizer, RawPixels, from_diffusers, open_tokenizer
from maetok_lab.tokenizer.loading import export_tokenizer
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer, TokenizerConfig
from maetok_lab.tokenizer.released import to_released
from maetok_lab.tokenizer.towers import TowerConfig

SIZE = 16
KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "latent_channels": 4,
    "norm_num_groups": 4,
}
DC = {
    "latent_channels": 4,
    "attention_head_dim": 2,
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), (5,)),
    "decoder_qkv_multiscales": ((), (5,)),
}

FLUX2 = KL | {"sample_size": 16}
QWEN = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True],
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
TINY = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
RAE = {  # images of 16 px are scaled to 14 for an encoder with patches of 7, and come back as 16
    "encoder_hidden_size": 4,
    "encoder_patch_size": 7,
    "encoder_num_hidden_layers": 1,
    "encoder_input_size": 14,
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 8,
    "patch_size": 8,
    "latents_mean": [[[0.5]]] * 4,
    "latents_std": [[[2.0]]] * 4,
}
CONFIGS = {
    "AutoencoderKL": KL,
    "AutoencoderDC": DC,
    "AutoencoderKLFlux2": FLUX2,
    "AutoencoderKLQwenImage": QWEN,
    "AutoencoderTiny": TINY,
    "AutoencoderRAE": RAE,
}


class Half(nn.Module):
    """A model with the interface of diffusers': its latents are the image at half its size."""

    def __init__(self, posterior: bool):
        super().__init__()
        self.scale, self.posterior = nn.Parameter(torch.ones(1)), posterior

    def encode(self, images):
        grid = nn.functional.avg_pool2d(images, 2) * self.scale
        if self.posterior:
            return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: grid))
        return SimpleNamespace(latent=grid)

    def decode(self, grid):
        return SimpleNamespace(sample=nn.functional.interpolate(grid / self.scale, scale_factor=2))


def images(count=4, size=SIZE):
    return torch.rand(count, 3, size, size, generator=generator(0, "images")) * 2 - 1


def saved_by_diffusers(folder, name):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**CONFIGS[name]).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture
def encoder_of_rae(monkeypatch):
    """transformers' network in the real AutoencoderRAE is a convolution: it need not be there."""
    diffusers = pytest.importorskip("diffusers")
    place = pytest.importorskip("diffusers.models.autoencoders.autoencoder_rae")

    def build(encoder_type, hidden_size, patch_size, num_hidden_layers):
        return nn.Conv2d(3, hidden_size, patch_size, patch_size)

    def tokens(network, images):
        return network(images).flatten(2).transpose(1, 2)

    monkeypatch.setattr(place, "_build_encoder", build)
    monkeypatch.setitem(place._ENCODER_FORWARD_FNS, "dinov2", tokens)
    monkeypatch.setattr(diffusers.utils, "is_transformers_available", lambda: True)


@pytest.mark.parametrize("posterior", [True, False])
def test_a_grid_of_latents_becomes_row_major_tokens_and_comes_back(posterior):
    tokenizer = GridTokenizer(Half(posterior), SIZE)
    x = images()
    latents = tokenizer.encode(x)
    assert latents.shape == (4, *tokenizer.latent_shape) == (4, 64, 3)
    torch.testing.assert_close(latents[:, 8 * 2 + 5], nn.functional.avg_pool2d(x, 2)[:, :, 2, 5])
    torch.testing.assert_close(tokenizer.encode(tokenizer.decode(latents)), latents)
    assert not tokenizer.model.scale.requires_grad


def test_the_fingerprint_is_that_of_the_weights():
    one, same, other = (GridTokenizer(Half(True), SIZE) for _ in range(3))
    assert one.fingerprint == same.fingerprint
    other.model.scale.data.mul_(2)
    assert GridTokenizer(other.model, SIZE).fingerprint != one.fingerprint


def test_raw_pixels_are_given_back_exactly():
    pixels = open_tokenizer("pixels", image_size=SIZE)
    x = images()
    assert pixels.latent_shape == (16, 48)
    assert torch.equal(pixels.decode(pixels.encode(x)), x)
    assert torch.equal(reconstruct(pixels, x), x)
    assert RawPixels(SIZE, 8).fingerprint != pixels.fingerprint
    with pytest.raises(ValueError, match="3 px do not divide"):
        RawPixels(SIZE, 3)


SHAPES = {"AutoencoderDC": (64, 4), "AutoencoderRAE": (4, 4)}  # (64, 4) for all that halve


def grid_by_hand(model, x):
    """The latents that a model of diffusers gives, by its own documentation."""
    name = type(model).__name__
    if name == "AutoencoderKLQwenImage":
        return model.encode(x[:, :, None]).latent_dist.mean[:, :, 0]
    if name == "AutoencoderRAE":
        return model.encode((x + 1) / 2).latent
    if name == "AutoencoderTiny":
        return model.encode(x).latents
    output = model.encode(x)
    return output.latent if name == "AutoencoderDC" else output.latent_dist.mean


def images_by_hand(model, grid):
    """What it makes of them, in [-1, 1]."""
    name = type(model).__name__
    if name == "AutoencoderKLQwenImage":
        return model.decode(grid[:, :, None]).sample[:, :, 0]
    sample = model.decode(grid).sample
    return sample * 2 - 1 if name == "AutoencoderRAE" else sample


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_autoencoders_are_read_from_a_folder(tmp_path, name, encoder_of_rae):
    model = saved_by_diffusers(tmp_path, name)
    tokenizer = open_tokenizer(tmp_path, image_size=SIZE)
    assert isinstance(tokenizer, AnyTokenizer)
    assert not tokenizer.training
    x = images()
    with torch.inference_mode():
        grid = grid_by_hand(model, x)
        latents = tokenizer.encode(x)
        torch.testing.assert_close(latents, grid.flatten(2).transpose(1, 2))
        back = tokenizer.decode(latents)
        torch.testing.assert_close(back, images_by_hand(model, grid))
    assert back.shape == x.shape
    assert latents.shape[1:] == tokenizer.latent_shape == SHAPES.get(name, (64, 4))
    assert tokenizer.grid == tuple(grid.shape[2:])
    assert from_diffusers(tmp_path, image_size=SIZE).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("name", CONFIGS)
def test_the_fingerprint_of_each_class_changes_with_a_weight(tmp_path, name, encoder_of_rae):
    saved_by_diffusers(tmp_path, name)
    tokenizer = from_diffusers(tmp_path, image_size=SIZE)
    before = tokenizer.fingerprint
    with torch.no_grad():
        next(tokenizer.parameters()).view(-1)[0] += 1
    assert tokenizer.fingerprint != before


def test_rae_gives_images_back_at_its_own_size_only(tmp_path, encoder_of_rae):
    saved_by_diffusers(tmp_path, "AutoencoderRAE")
    with pytest.raises(ValueError, match=r"gives back images of 16 px for those of 32; set `image"):
        from_diffusers(tmp_path, image_size=32)


def test_a_size_that_a_model_cannot_halve_is_one_line(tmp_path):
    saved_by_diffusers(tmp_path / "kl", "AutoencoderKL")
    with pytest.raises(ValueError, match=r"AutoencoderKL gives back images of 14 px .* to 14"):
        from_diffusers(tmp_path / "kl", image_size=15)

    class Whole(Half):
        def encode(self, images):
            return super().encode(images.unflatten(-1, (-1, 2)).flatten(-2))

    with pytest.raises(ValueError, match=r"Whole cannot take images of 15 px .*`image_size`"):
        GridTokenizer(Whole(True), 15)


def test_models_with_time_encode_in_several_threads_at_once(tmp_path):
    """diffusers keeps the frames before in attributes of the model: two calls shared them."""
    saved_by_diffusers(tmp_path, "AutoencoderKLQwenImage")
    tokenizer = from_diffusers(tmp_path, image_size=64)
    parts = images(16, 64).split(1)
    with torch.no_grad():
        expected = [tokenizer.decode(tokenizer.encode(part)) for part in parts]

        def back(part):
            with torch.no_grad():
                return tokenizer.decode(tokenizer.encode(part))

        with ThreadPoolExecutor(4) as pool:
            for one, other in zip(expected, pool.map(back, parts)):
                torch.testing.assert_close(one, other)
    assert not hasattr(tokenizer.model, "_feat_map")


def test_rae_without_transformers_and_an_old_diffusers_say_what_to_install(tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderRAE"}')
    monkeypatch.setattr(diffusers.utils, "is_transformers_available", lambda: False)
    with pytest.raises(ImportError, match="AutoencoderRAE needs transformers: pip install"):
        open_tokenizer(tmp_path, image_size=SIZE)
    old = SimpleNamespace(__version__="0.32.0", AutoencoderKL=diffusers.AutoencoderKL)
    monkeypatch.setitem(sys.modules, "diffusers", old)
    with pytest.raises(ImportError, match=r"needs a newer diffusers than 0\.32\.0"):
        open_tokenizer(tmp_path, image_size=SIZE)


def test_other_models_of_diffusers_and_folders_without_one_are_refused(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    diffusers.VQModel(norm_num_groups=8, block_out_channels=(8,)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a VQModel, not one of \['AutoencoderDC', .*Tiny'"):
        from_diffusers(tmp_path, image_size=SIZE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no folder of diffusers'"):
        from_diffusers(tmp_path / "empty", image_size=SIZE)


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"maetok-lab\[evaluation\]"):
        open_tokenizer("diffusers:owner/name", image_size=SIZE)


def test_our_own_and_the_released_weights_are_opened_by_the_same_call(tmp_path):
    ours = Tokenizer(TOKENIZERS["test"])
    opened = open_tokenizer(export_tokenizer(ours, tmp_path / "ours"), image_size=64)
    assert isinstance(opened, AnyTokenizer)
    assert opened.latent_shape == (32, 4) == tuple(opened.encode(images(2, 64)).shape[1:])
    with pytest.raises(ValueError, match="takes images of 64 px, not 32"):
        open_tokenizer(tmp_path / "ours", image_size=32)
    tower = TowerConfig(width=16, depth=1, num_heads=2, rope="mixed", positions="rope+ape")
    released = Tokenizer(
        TokenizerConfig(
            image_size=16,
            patch_size=4,
            num_latent_tokens=5,
            latent_dim=2,
            class_token=True,
            layer_scale=1e-5,
            encoder=tower,
            decoder=dataclasses.replace(tower, positions="rope"),
        )
    )
    folder = write_weights(tmp_path / "released", to_released(released), {"num_heads": 2}, "")
    opened = open_tokenizer(folder, image_size=SIZE)
    assert isinstance(opened, AnyTokenizer)
    assert opened.latent_shape == (5, 2) == tuple(opened.encode(images(2)).shape[1:])


@pytest.mark.parametrize("kind", ["pixels", "grid", *CONFIGS])
def test_caching_analysis_and_evaluation_take_every_kind(
    tmp_path, make_pictures, kind, encoder_of_rae
):
    if kind == "pixels":
        tokenizer = RawPixels(SIZE, 8)
    elif kind == "grid":
        tokenizer = GridTokenizer(Half(True), SIZE)
    else:
        saved_by_diffusers(tmp_path / kind, kind)
        tokenizer = open_tokenizer(tmp_path / kind, image_size=SIZE)
    caches = []
    for seed in (0, 1):
        pictures = make_pictures(40, SIZE, seed=seed)
        config = LatentCaching(
            tokenizer=tokenizer.fingerprint, images=pictures.fingerprint, flips=False
        )
        run = Run.open(f"cache-{seed}", config, root=tmp_path)
        list(write_latents(tokenizer, pictures, config, run, device=torch.device("cpu")))
        caches.append(LatentDataset(run))
    train, test = caches
    assert (train.num_tokens, train.latent_dim) == tokenizer.latent_shape
    settings = CardSettings(
        components=(1, 2), dimensions=3, decoded=6, pairs=2, noise_levels=(0.1,)
    )
    card = diffusability_card(
        train, train.labels, test, test.labels, decode=tokenizer.decode, settings=settings
    )
    assert {"gmm_nll_2", "probe_top1", "knn_top1", "psnr_at_noise_0.1"} <= set(card.index)
    score = evaluate_reconstruction(tokenizer, pictures.images)
    assert score.metrics["psnr"] > (100 if kind == "pixels" else 0)


def test_errors_say_what_came():
    tokenizer = GridTokenizer(Half(False), SIZE)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 16, 16\), not \(4, 3, 32, 32\)"):
        tokenizer.encode(images(size=32))
    with pytest.raises(ValueError, match=r"latents must be \(B, 64, 3\), not \(1, 3, 64\)"):
        tokenizer.decode(torch.zeros(1, 3, 64))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_tokenizer("nowhere", image_size=SIZE)
