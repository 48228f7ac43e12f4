"""The authors' tokenizer computes the same as ours, goes back unchanged, and has a folder."""

import json
from argparse import Namespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from maetok_lab.config import override
from maetok_lab.files import write_json
from maetok_lab.tokenizer.foreign import open_tokenizer
from maetok_lab.tokenizer.loading import export_tokenizer, load_tokenizer
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer
from maetok_lab.tokenizer.released import from_released, released_config, to_released


@pytest.fixture(scope="module")
def fixture(repository) -> dict[str, torch.Tensor]:
    return load_file(repository / "tests" / "fixtures" / "tokenizer-small.safetensors")


@pytest.fixture(scope="module")
def settings(repository) -> dict:
    with safe_open(repository / "tests" / "fixtures" / "tokenizer-small.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"])


@pytest.fixture(scope="module")
def weights(fixture) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("weights."): value
        for name, value in fixture.items()
        if name.startswith("weights.")
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], value) for name, value in b.items())


def test_latents_and_reconstructions_agree_with_the_release(fixture, weights, settings):
    tokenizer = from_released(weights, settings)
    assert not tokenizer.training
    with torch.inference_mode():
        assert (tokenizer.encode(fixture["images"]) - fixture["latents"]).abs().max() < 1e-4
        assert (
            tokenizer.decode(fixture["latents"]) - fixture["reconstructions"]
        ).abs().max() < 1e-4


def test_a_round_trip_is_exact_also_of_what_nothing_uses(weights, settings):
    assert same(to_released(from_released(weights, settings)), weights)


def test_the_papers_model_has_exactly_the_released_names_and_shapes(repository):
    shapes = json.loads(
        (repository / "tests" / "fixtures" / "released-state-dicts.json").read_text()
    )["maetok-b-128"]
    hub = {
        "image_size": 256,
        "num_latent_tokens": 128,
        "codebook_embed_dim": 32,
        "enc_patch_size": 16,
        "dec_patch_size": 16,
        "encoder_model": "vit_base_patch14_dinov2.lvd142m",
        "decoder_model": "vit_base_patch14_dinov2_movqv2",
        "use_rope": True,
        "rope_mixed": True,
        "rope_theta": 10.0,
        "enc_token_drop": 0.4,
        "_something_new": 7,
    }
    with torch.device("meta"):
        ours = to_released(Tokenizer(TOKENIZERS["maetok-b-128"]))
        released = from_released({name: torch.empty(shape) for name, shape in shapes.items()}, hub)
    sizes = {name: list(value.shape) for name, value in ours.items()}
    assert sizes == shapes
    coordinates = sum(
        torch.Size(shape).numel() for name, shape in sizes.items() if "freqs_t" in name
    )
    assert sum(torch.Size(shape).numel() for shape in sizes.values()) - coordinates == 173_890_592
    assert released.config == TOKENIZERS["maetok-b-128"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 256}, "the config says image_size = 256, but the tensors say 64"),
        (
            {"num_latent_tokens": 128},
            "the config says num_latent_tokens = 128, but the tensors say 16",
        ),
        (
            {"codebook_embed_dim": 32},
            "the config says codebook_embed_dim = 32, but the tensors say 8",
        ),
        (
            {"encoder_model": "vit_base_patch14"},
            r"encoder_model = 'vit_base_patch14', but the tensors are \(48, 2\)",
        ),
        ({"num_heads": 5}, "5 heads do not divide the width 48"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(weights, settings, changes, message):
    with pytest.raises(ValueError, match=message):
        from_released(weights, settings | changes)


def test_tensors_that_do_not_fit_are_a_table(weights, settings):
    wrong = {name: value for name, value in weights.items() if name != "quant_conv.weight"}
    wrong |= {"extra": torch.zeros(1), "decoder.mask_token": torch.zeros(1, 2, 48)}
    lines = (
        "released tokenizer: the tensors do not fit the model\n"
        "  missing     quant_conv.weight (8, 48)\n"
        "  unexpected  extra (1,)\n"
        "  misshapen   decoder.mask_token is (1, 2, 48), needs (1, 1, 48)"
    )
    with pytest.raises(ValueError) as problem:
        from_released(wrong, settings)
    assert str(problem.value) == lines
    with pytest.raises(
        ValueError,
        match=r"these are no released tokenizer weights: the tensor 'quant_conv.bias' is missing",
    ):
        from_released(
            {
                "encoder.model.patch_embed.proj.weight": torch.zeros(2, 3, 4, 4),
                "encoder.model.pos_embed": torch.zeros(1, 5, 2),
            },
            settings,
        )


@pytest.mark.parametrize(
    "change",
    [{"bottleneck": "kl"}, {"refine": 8}, {"class_token": False}, {"decoder.rope": "axial"}],
)
def test_what_their_tokenizer_cannot_express_has_no_released_form(weights, settings, change):
    config = override(from_released(weights, settings).config, change)
    with pytest.raises(
        ValueError,
        match=r"only tokenizers built like maetok-b-128 .* have a released form; this one differs",
    ):
        to_released(Tokenizer(config))


# ---- Checkpoints of their training ----


@pytest.fixture(scope="module")
def trained(weights) -> dict[str, torch.Tensor]:
    """What their training stores beside the hub's tensors: a mask token, targets and decoders."""
    generator = torch.Generator().manual_seed(0)
    parts = {
        "decoder_hog.model.blocks.0.norm1.weight": torch.ones(3),
        "decoder_hog.mask_token": torch.ones(1, 1, 3),
        "post_quant_conv_hog.weight": torch.ones(3, 8),
        "to_pixel_hog.bias": torch.ones(108),
        "hog_generator.weight_x": torch.ones(3, 1, 3, 3),
        "repa_model.pos_embed": torch.ones(1, 5, 3),
        "projection.0.weight": torch.ones(2, 8),
        "clip_model.norm.weight": torch.ones(3),
    }
    mask_token = torch.randn(1, 1, 48, generator=generator)
    return weights | {"encoder.mask_token": mask_token} | parts


LEFT_OUT = (
    "left out, used in training alone: decoder_hog, post_quant_conv_hog, to_pixel_hog, "
    "hog_generator, repa_model, projection, clip_model"
)


def test_a_training_checkpoint_has_the_mask_token_and_says_what_is_left_out(
    fixture, weights, trained, settings
):
    with pytest.warns(UserWarning, match="left out") as warnings:
        tokenizer = from_released(trained, settings)
    assert [str(warning.message) for warning in warnings] == [LEFT_OUT]
    assert torch.equal(tokenizer.encoder.mask_token, trained["encoder.mask_token"])
    images = fixture["images"]
    mask = torch.ones(len(images), 16, dtype=torch.bool)
    with torch.inference_mode():
        assert (tokenizer.encode(images) - fixture["latents"]).abs().max() < 1e-4
        masked = tokenizer.encode(images, mask=mask)
        # every patch is the mask token, as if the embedding gave nothing else
        tokenizer.encoder.patch_embed.weight.zero_()
        tokenizer.encoder.patch_embed.bias.copy_(trained["encoder.mask_token"].flatten())
        assert torch.allclose(masked, tokenizer.encode(images), atol=1e-6)
    # the hub's form is without it
    with_token = weights | {"encoder.mask_token": trained["encoder.mask_token"]}
    assert same(to_released(from_released(with_token, settings)), weights)
    with pytest.raises(ValueError, match=r"misshapen   encoder.mask_token is \(1, 2, 48\)"):
        from_released(weights | {"encoder.mask_token": torch.zeros(1, 2, 48)}, settings)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_a_checkpoint_file_loads_by_its_path(fixture, weights, settings, tmp_path, prefix):
    # as their train_tokenizer.py writes it, with a wrapped model and its average
    current = {f"{prefix}{name}": torch.zeros_like(value) for name, value in weights.items()}
    averaged = {f"{prefix}{name}": value for name, value in weights.items()}
    checkpoint = {
        "model": current,
        "ema": averaged,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]},
        "steps": 1,
        "args": Namespace(**settings, vq_model="MaskAE-16"),
    }
    path = tmp_path / "0000001.pt"
    torch.save(checkpoint, path)
    with pytest.warns(UserWarning, match="of ema and model in this checkpoint, 'ema' is loaded"):
        tokenizer = load_tokenizer(path)
    assert (tokenizer.encode(fixture["images"]) - fixture["latents"]).abs().max() < 1e-4
    # either group by hand, and a file of one
    assert same(to_released(from_released(averaged, settings)), weights)
    assert not from_released(current, settings).to_latents.weight.any()
    torch.save({"model": averaged, "args": Namespace(**settings)}, path)
    assert load_tokenizer(path).fingerprint == tokenizer.fingerprint
    assert open_tokenizer(path, image_size=64).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16)])
def test_heads_are_those_of_the_standard_models_by_their_width(width, heads):
    state = {
        "encoder.model.patch_embed.proj.weight": torch.empty(width, 3, 16, 16),
        "encoder.model.pos_embed": torch.empty(1, 5, width),
        "encoder.latent_tokens": torch.empty(1, 4, width),
        "quant_conv.bias": torch.empty(8),
        "decoder.mask_token": torch.empty(1, 1, 768),
    }
    config = released_config(state, {})
    assert (config.encoder.num_heads, config.decoder.num_heads) == (heads, 12)
    assert released_config(state, {"num_heads": 4}).encoder.num_heads == 4


def test_a_number_of_heads_that_nothing_says_is_not_guessed(weights, settings):
    silent = {key: value for key, value in settings.items() if key != "num_heads"}
    with pytest.raises(
        ValueError, match="nothing says how many heads the encoder of width 48 has: put num_heads"
    ):
        from_released(weights, silent)


# ---- Folders ----


def test_a_folder_as_the_hub_has_it_loads_by_its_path_and_by_a_hub_name(
    fixture, weights, settings, tmp_path, monkeypatch
):
    save_file(weights, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", settings | {"vq_mean": 0.1})
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.encode(fixture["images"]) - fixture["latents"]).abs().max() < 1e-4
    requests = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **options: requests.append((name, options)) or tmp_path,
    )
    assert load_tokenizer("MAETok/maetok-b-128").fingerprint == tokenizer.fingerprint
    [(name, options)] = requests
    assert name == "MAETok/maetok-b-128"
    assert all(
        pattern.endswith((".safetensors", ".json", ".md")) for pattern in options["allow_patterns"]
    )


def test_our_own_tokenizer_is_exported_with_a_card_and_comes_back_the_same(tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer(TOKENIZERS["test"]).eval()
    folder = export_tokenizer(tokenizer, tmp_path / "ours", about="Of the tests.")
    back = load_tokenizer(folder)
    assert back.config == tokenizer.config
    assert same(back.state_dict(), tokenizer.state_dict())
    card = (folder / "README.md").read_text()
    assert "Of the tests." in card
    assert "Images of 64 px in [-1, 1] to 32 tokens of 4 channels" in card
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]


def test_a_released_tokenizer_is_exported_as_one_of_ours_without_what_nothing_uses(
    weights, settings, tmp_path
):
    tokenizer = from_released(weights, settings)
    back = load_tokenizer(export_tokenizer(tokenizer, tmp_path))
    assert same(back.state_dict(), tokenizer.state_dict())
    assert set(tokenizer.state_dict()) == set(Tokenizer(tokenizer.config).state_dict())


def test_folders_and_names_that_hold_nothing_are_one_clear_line(weights, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"holds no weights: model\.safetensors is missing"):
        load_tokenizer(tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds no weights: config\.json is missing"):
        load_tokenizer(tmp_path)
    write_json(tmp_path / "config.json", {"num_heads": 3})
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_tokenizer(tmp_path)

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        FileNotFoundError,
        match=r"MAETok/maetok-b-128 is not in the hub's cache and could not be fetched",
    ):
        load_tokenizer("MAETok/maetok-b-128")
