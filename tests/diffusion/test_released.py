"""The authors' SiT computes the same here, goes back unchanged, and loads in one line."""

import json
from argparse import Namespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from maetok_lab.data.latents import LatentSpace, load_latent_space
from maetok_lab.diffusion.loading import export_diffusion, load_diffusion
from maetok_lab.diffusion.model import (
    DIFFUSION,
    DiffusionConfig,
    DiffusionTransformer,
    describe_model,
)
from maetok_lab.diffusion.released import from_released, to_released
from maetok_lab.diffusion.sampling import Guidance, sample
from maetok_lab.files import write_json
from maetok_lab.generation.images import generate
from maetok_lab.identity import remember_name
from maetok_lab.tokenizer.loading import export_tokenizer, load_tokenizer
from maetok_lab.tokenizer.model import Tokenizer, TokenizerConfig
from maetok_lab.tokenizer.towers import TowerConfig


@pytest.fixture(scope="module")
def fixture(repository) -> dict[str, torch.Tensor]:
    return load_file(repository / "tests" / "fixtures" / "sit-small.safetensors")


@pytest.fixture(scope="module")
def settings(repository) -> dict:
    with safe_open(repository / "tests" / "fixtures" / "sit-small.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"])


@pytest.fixture(scope="module")
def weights(fixture) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("weights."): value
        for name, value in fixture.items()
        if name.startswith("weights.")
    }


@pytest.fixture(scope="module")
def released(weights, settings) -> DiffusionTransformer:
    return from_released(weights, settings)


# The same numbers ---------------------------------------------------------------------------------


def test_velocities_agree_with_the_release(fixture, released, settings):
    assert not released.training
    null = torch.full((3,), settings["num_classes"])
    with torch.inference_mode():
        for key, labels in (("velocity", fixture["labels"]), ("velocity_null", null)):
            assert (
                released(fixture["x_t"], fixture["t"], labels) - fixture[key]
            ).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["euler", "heun", "euler_maruyama"])
@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_samples_agree_with_the_release(fixture, weights, settings, path, method):
    model = from_released(weights, settings | {"path_type": path})
    guidance = Guidance(settings["cfg_scale"], settings["guidance_low"], settings["guidance_high"])
    actual = sample(
        model,
        fixture["x_t"],
        fixture["labels"],
        method=method,
        num_steps=settings["num_steps"],
        guidance=guidance,
        sde_noise=fixture["sde_noise"] if method == "euler_maruyama" else None,
    )
    assert (actual - fixture[f"sample_{path}_{method}"]).abs().max() < 1e-3


def test_a_round_trip_is_exact(weights, released):
    back = to_released(released)
    assert set(back) == set(weights)
    assert all(torch.equal(back[name], value) for name, value in weights.items())


def test_the_hubs_sit_xl_is_our_preset_and_its_sizes_come_from_the_tensors(repository):
    shapes = json.loads(
        (repository / "tests" / "fixtures" / "released-state-dicts.json").read_text()
    )["sit-xl_maetok-b-128"]
    hub = {
        "input_size": 128,
        "in_channels": 32,
        "hidden_size": 1152,
        "depth": 28,
        "num_heads": 16,
        "num_classes": 1000,
        "path_type": "linear",
        "vae_1d": True,
        "_something_new": 7,
    }
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
        for config in (
            hub,
            {},
        ):  # without a config the number of heads is that of the paper's SiT of this size
            model = from_released(tensors, config)
            assert model.config == DIFFUSION["sit-xl"]
            assert describe_model(model) == {
                "num_tokens": 128,
                "latent_dim": 32,
                "num_classes": 1000,
            }
    actual = {name: list(value.shape) for name, value in to_released(model).items()}
    assert actual == shapes
    assert sum(torch.Size(shape).numel() for shape in actual.values()) == 675_000_608


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, "the config says hidden_size = 64, but the tensors say 48"),
        ({"input_size": 8}, "the config says input_size = 8, but the tensors say 16"),
        ({"in_channels": 4}, "the config says in_channels = 4, but the tensors say 8"),
        ({"depth": 3}, "the config says depth = 3, but the tensors say 2"),
        ({"num_classes": 1000}, "the config says num_classes = 1000, but the tensors say 10"),
        ({"vae_1d": False}, "the config says vae_1d = False, but the tensors say True"),
        ({"path_type": "VP"}, "unknown path_type 'vp'; choose one of"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(weights, settings, changes, message):
    with pytest.raises(ValueError, match=message):
        from_released(weights, settings | changes)


def test_tensors_that_do_not_fit_are_named(weights, settings):
    short = {name: value for name, value in weights.items() if name != "final_layer.linear.bias"}
    with pytest.raises(
        ValueError,
        match=r"released SiT: the tensors do not fit the model\n  missing     final_layer.linear.b",
    ):
        from_released(short, settings)
    with pytest.raises(ValueError, match=r"unexpected  extra \(1,\)"):
        from_released(weights | {"extra": torch.zeros(1)}, settings)
    with pytest.raises(
        ValueError, match=r"these are no released SiT weights: the tensor 'pos_embed' is missing"
    ):
        from_released(
            {name: value for name, value in weights.items() if name != "pos_embed"}, settings
        )
    with pytest.raises(
        ValueError,
        match="the config has no num_heads, and no SiT of the paper has width 48 and depth 2",
    ):
        from_released(weights, {})


@pytest.mark.parametrize(
    "change", [{"norm": "rmsnorm"}, {"mlp": "swiglu"}, {"positions": "rope"}, {"qk_norm": True}]
)
def test_what_their_sit_cannot_express_has_no_released_form(change):
    config = DiffusionConfig(**{"width": 16, "depth": 1, "num_heads": 2} | change)
    with pytest.raises(ValueError, match=r"only SiT .* has a released form"):
        to_released(DiffusionTransformer(config, num_tokens=4, latent_dim=2, num_classes=3))


def test_a_data_prediction_has_no_released_form():
    config = DiffusionConfig(width=16, depth=1, num_heads=2)
    model = DiffusionTransformer(config, num_tokens=4, latent_dim=2, num_classes=3)
    assert to_released(model)
    model.set_training("linear", "data")
    with pytest.raises(ValueError, match=r"only SiT .* velocity has a released form, .* data$"):
        to_released(model)


# Folders ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(repository, tmp_path_factory, weights, settings):
    """Folders as the hub has them, a tokenizer's and a SiT's, with the scalars that normalise."""
    root = tmp_path_factory.mktemp("hub")
    with safe_open(repository / "tests" / "fixtures" / "tokenizer-small.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {
            n.removeprefix("weights."): file.get_tensor(n)
            for n in list(file.keys())
            if n.startswith("weights.")
        }
    for name, values, contents in (
        ("tokenizer", tensors, config | {"vq_mean": 0.25, "vq_std": 2.0}),
        (
            "sit",
            weights,
            {key: settings[key] for key in ("num_heads", "num_classes")} | {"path_type": "cosine"},
        ),
    ):
        (root / name).mkdir()
        save_file(values, root / name / "model.safetensors")
        write_json(root / name / "config.json", contents)
    return root


def test_a_released_tokenizer_and_a_released_sit_make_images_in_two_lines(folders, settings):
    tokenizer, space = (
        load_tokenizer(folders / "tokenizer"),
        load_latent_space(folders / "tokenizer"),
    )
    model = load_diffusion(folders / "sit")
    assert (space.mean.item(), space.std.item(), model.trained_path) == (0.25, 2.0, "cosine")
    shape = (tokenizer.config.num_latent_tokens, tokenizer.config.latent_dim)
    assert shape == (model.num_tokens, model.latent_dim), "the fixtures belong together"
    images = generate(model, tokenizer, space, torch.tensor([1, 2]), num_steps=2)
    assert images.shape == (2, 3, tokenizer.config.image_size, tokenizer.config.image_size)
    assert images.isfinite().all()


def test_a_checkpoint_of_their_training_loads_by_its_path(fixture, weights, settings, tmp_path):
    # a compiled model, and its average, which they copy before they compile it
    current = {f"_orig_mod.{name}": torch.zeros_like(value) for name, value in weights.items()}
    args = Namespace(model="SiT-XL/1", path_type="Linear", num_classes=settings["num_classes"])
    path = tmp_path / "0400000.pt"
    torch.save({"model": current, "ema": weights, "opt": {}, "args": args}, path)
    write_json(tmp_path / "config.json", {"num_heads": settings["num_heads"]})
    with pytest.warns(UserWarning, match="'ema' is loaded"):
        model = load_diffusion(path)
    with torch.inference_mode():
        velocity = model(fixture["x_t"], fixture["t"], fixture["labels"])
    assert (velocity - fixture["velocity"]).abs().max() < 1e-4
    # the state dict of the compiled model alone, as it is in memory
    compiled = {f"_orig_mod.{name}": value for name, value in weights.items()}
    back = to_released(from_released(compiled, settings))
    assert all(torch.equal(back[name], value) for name, value in weights.items())


def test_one_set_of_weights_has_no_choice_of_rates(folders):
    with pytest.raises(
        ValueError, match="sit holds one set of weights, without a choice of EMA rate or step"
    ):
        load_diffusion(folders / "sit", ema=0.9)


def test_an_exported_folder_gives_model_and_latent_space_back_bound_to_the_exported_tokenizer(
    tmp_path,
):
    torch.manual_seed(0)
    tower = TowerConfig(width=16, depth=1, num_heads=2)
    sizes = {"image_size": 16, "patch_size": 4, "num_latent_tokens": 16, "latent_dim": 8}
    tokenizer = Tokenizer(TokenizerConfig(**sizes, encoder=tower, decoder=tower))
    remember_name(tokenizer, "a run's")
    space = LatentSpace("a run's", torch.linspace(-1, 1, 8), torch.linspace(0.1, 0.7, 8))
    parts = DiffusionConfig(
        width=16, depth=1, num_heads=2, norm="rmsnorm", mlp="swiglu", positions="rope-2d"
    )
    model = DiffusionTransformer(parts, num_tokens=16, latent_dim=8, num_classes=3).eval()
    model.set_training("cosine", "data", "dimension")
    export_tokenizer(tokenizer, tmp_path / "ours")
    export_diffusion(
        model, tmp_path / "flow", space=space, tokenizer=tokenizer, about="Four tokens."
    )
    back, record = load_diffusion(tmp_path / "flow"), load_latent_space(tmp_path / "flow")
    assert (back.trained_prediction, back.trained_shift) == ("data", (128 / 4096) ** 0.5)
    assert (back.config, back.trained_path, describe_model(back)) == (
        parts,
        "cosine",
        describe_model(model),
    )
    assert all(
        torch.equal(back.state_dict()[name], value) for name, value in model.state_dict().items()
    )
    assert torch.equal(record.mean, space.mean)
    assert torch.equal(record.std, space.std)
    exported = load_tokenizer(tmp_path / "ours")
    assert exported.fingerprint == record.tokenizer == back.tokenizer_fingerprint
    assert "Four tokens." in (tmp_path / "flow" / "README.md").read_text()
    torch.nn.init.zeros_(tokenizer.to_pixels.bias[:1])
    assert tokenizer.fingerprint == exported.fingerprint  # it was zero
    torch.nn.init.ones_(tokenizer.to_pixels.bias[:1])
    with pytest.raises(
        ValueError,
        match=f"the latent space belongs to tokenizer a run's, not to {tokenizer.fingerprint}",
    ):
        export_diffusion(model, tmp_path / "no", space=space, tokenizer=tokenizer)
