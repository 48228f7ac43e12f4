"""The authors' SoftVQ tokenizers compute what their code says, and go back unchanged.

Their weights were not at hand: `Theirs` states their code again, as it was read, from the tensors'
names alone and with none of our layers, and random weights of their names stand for the released.
"""

import re
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from maetok_lab.config import override
from maetok_lab.files import write_json
from maetok_lab.tokenizer.config import TokenizerConfig, TowerConfig
from maetok_lab.tokenizer.loading import export_tokenizer, load_tokenizer
from maetok_lab.tokenizer.model import Tokenizer
from maetok_lab.tokenizer.released import from_released, released_config, to_released

PATCH, GRID, TOKENS, CHANNELS, CODEBOOKS, CODES, HEADS = 4, 3, 8, 5, 4, 6, 2
WIDTHS = {"encoder": 16, "decoder": 24}
DEPTHS = {"encoder": 2, "decoder": 3}
# as the hub's config.json has it, with keys that say nothing of the model
SETTINGS = {
    "image_size": PATCH * GRID,
    "codebook_size": CODES,
    "codebook_embed_dim": CHANNELS,
    "codebook_l2_norm": True,
    "codebook_show_usage": True,
    "entropy_loss_ratio": 0.01,
    "tau": 0.07,
    "num_codebooks": CODEBOOKS,
    "num_latent_tokens": TOKENS,
    "enc_patch_size": PATCH,
    "dec_patch_size": PATCH,
    "use_ape": True,
    "use_rope": False,
    "rope_mixed": False,
    "dec_cls_token": True,
    "repa": True,
    "vq_mean": 0.1,
    "num_heads": HEADS,  # ours: tiny widths are nobody's
}


def skeleton(tower: str) -> dict[str, tuple[int, ...]]:
    """Shapes of timm's DINOv2 at the width, depth and patches of a tower, by their names."""
    width = WIDTHS[tower]
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + GRID**2, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    layers = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for number in range(DEPTHS[tower]):
        block = f"blocks.{number}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        shapes |= {f"{block}ls1.gamma": (width,), f"{block}ls2.gamma": (width,)}
        for layer, (outputs, inputs) in layers.items():
            shapes[f"{block}{layer}.weight"] = (outputs * width, inputs * width)
            shapes[f"{block}{layer}.bias"] = (outputs * width,)
    return {f"{tower}.model.{name}": shape for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random, of a size at which every tensor is felt in the pictures."""
    encoder, decoder = WIDTHS["encoder"], WIDTHS["decoder"]
    shapes = {
        **skeleton("encoder"),
        "encoder.latent_tokens": (1, TOKENS, encoder),
        "encoder.latent_pos_embed": (1, TOKENS, encoder),
        "quant_conv.weight": (CHANNELS, encoder),
        "quant_conv.bias": (CHANNELS,),
        "quantize.embedding": (CODEBOOKS, CODES, CHANNELS),
        "post_quant_conv.weight": (decoder, CHANNELS),
        "post_quant_conv.bias": (decoder,),
        **skeleton("decoder"),
        "decoder.mask_token": (1, 1, decoder),
        "decoder.latent_pos_embed": (1, TOKENS, decoder),
        "decoder.to_pixel.model.weight": (3 * PATCH**2, decoder),
        "decoder.to_pixel.model.bias": (3 * PATCH**2,),
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        size = 0.3 if len(shape) == 2 else 1.0
        tensors[name] = size * torch.randn(shape, generator=generator)
    usage = torch.randint(CODES, (CODEBOOKS, 65_536), generator=generator)
    return tensors | {"quantize.codebook_used": usage.float()}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    size = PATCH * GRID
    return 2 * torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1)) - 1


# ---- Their code, stated again ----


class Theirs:
    """SoftVQModel in eval mode: plain functions of the tensors, one image after the other."""

    def __init__(self, weights):
        self.weights = weights

    def linear(self, x, name):
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x, name):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, eps=1e-6)

    def blocks(self, x, tower):
        """DINOv2's blocks and its last norm. x (S, D) -> (S, D)"""
        for number in range(DEPTHS[tower]):
            block = f"{tower}.model.blocks.{number}"
            attended, _ = functional.multi_head_attention_forward(
                *[self.norm(x, f"{block}.norm1")] * 3,
                embed_dim_to_check=x.shape[1],
                num_heads=HEADS,
                in_proj_weight=self.weights[f"{block}.attn.qkv.weight"],
                in_proj_bias=self.weights[f"{block}.attn.qkv.bias"],
                bias_k=None,
                bias_v=None,
                add_zero_attn=False,
                dropout_p=0.0,
                out_proj_weight=self.weights[f"{block}.attn.proj.weight"],
                out_proj_bias=self.weights[f"{block}.attn.proj.bias"],
                need_weights=False,
            )
            x = x + attended * self.weights[f"{block}.ls1.gamma"]
            hidden = functional.gelu(
                self.linear(self.norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
            )
            x = x + self.linear(hidden, f"{block}.mlp.fc2") * self.weights[f"{block}.ls2.gamma"]
        return self.norm(x, f"{tower}.model.norm")

    def place(self, patches, tower):
        """The class token in front, then the absolute positions. (P, D) -> (1 + P, D)"""
        x = torch.cat([self.weights[f"{tower}.model.cls_token"][0], patches])
        return x + self.weights[f"{tower}.model.pos_embed"][0]

    def encode(self, image):
        """(3, H, W) -> (N, C)"""
        name = "encoder.model.patch_embed.proj"
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        patches = functional.conv2d(image[None], weight, bias, stride=PATCH)[0].flatten(1).T
        queries = self.weights["encoder.latent_tokens"] + self.weights["encoder.latent_pos_embed"]
        x = torch.cat([self.place(patches, "encoder"), queries[0]])
        tokens = self.linear(self.blocks(x, "encoder")[-TOKENS:], "quant_conv")

        # consecutive tokens share a codebook: the first quarter has the first one
        latents = []
        for number, token in enumerate(tokens):
            codes = self.weights["quantize.embedding"][number * CODEBOOKS // TOKENS]
            codes = codes / codes.norm(dim=1, keepdim=True)
            shares = torch.softmax(codes @ (token / token.norm()) / 0.07, dim=0)
            latents.append((shares[:, None] * codes).sum(0))
        return torch.stack(latents)

    def decode(self, latents):
        """(N, C) -> (3, H, W)"""
        hidden = self.weights["decoder.mask_token"][0].repeat(GRID**2, 1)
        tokens = self.linear(latents, "post_quant_conv")
        tokens = tokens + self.weights["decoder.latent_pos_embed"][0]
        x = self.blocks(torch.cat([self.place(hidden, "decoder"), tokens]), "decoder")
        pixels = self.linear(x[1 : 1 + GRID**2], "decoder.to_pixel.model")  # channel fastest
        columns = pixels.reshape(GRID**2, PATCH**2, 3).transpose(1, 2).flatten(1).T
        return functional.fold(columns, PATCH * GRID, PATCH, stride=PATCH)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], value) for name, value in b.items())


def test_latents_and_reconstructions_agree_with_their_code(weights, images):
    theirs = Theirs(weights)
    tokenizer = from_released(weights, SETTINGS)
    assert not tokenizer.training
    latents = torch.stack([theirs.encode(image) for image in images])
    pictures = torch.stack([theirs.decode(latent) for latent in latents])
    with torch.inference_mode():
        assert (tokenizer.encode(images) - latents).abs().max() < 1e-5
        assert (tokenizer.decode(latents) - pictures).abs().max() < 1e-5
        assert (tokenizer(images) - pictures).abs().max() < 2e-5


def test_every_tensor_but_the_unused_changes_what_is_reconstructed(weights, images):
    settled = {"quantize.codebook_used"}
    settled |= {f"decoder.model.patch_embed.proj.{kind}" for kind in ("weight", "bias")}
    with torch.inference_mode():
        usual = from_released(weights, SETTINGS)(images)
        for name, value in weights.items():
            other = from_released(weights | {name: value.flip(-1)}, SETTINGS)(images)
            assert torch.equal(usual, other) == (name in settled), name


def test_a_round_trip_is_exact_with_their_record_of_codes_and_without(weights):
    assert same(to_released(from_released(weights, SETTINGS)), weights)
    bare = {name: value for name, value in weights.items() if name != "quantize.codebook_used"}
    assert same(to_released(from_released(bare, SETTINGS)), bare)


# ---- At the released sizes ----


def full_size(encoder: tuple[int, int, int], decoder: tuple[int, int, int]) -> TokenizerConfig:
    """A released tokenizer of 64 tokens: width, depth and heads of its two ViTs."""
    towers = []
    for width, depth, heads in (encoder, decoder):
        towers.append(TowerConfig(width=width, depth=depth, num_heads=heads, positions="ape"))
    return TokenizerConfig(
        num_latent_tokens=64,
        encoder=towers[0],
        decoder=towers[1],
        bottleneck="softvq",
        codes=8192,
        codebooks=4,
        class_token=True,
        layer_scale=1e-5,
        decoder_modulation=False,
        decoder_class_token=True,
        decoder_layer_scale=1e-5,
    )


@pytest.mark.parametrize(
    ("encoder", "decoder", "millions"),
    [("base", "base", 173), ("base", "large", 391), ("large", "large", 608)],
)
def test_the_released_sizes_are_the_papers(encoder, decoder, millions):
    # SoftVQ-B, -BL and -L (arXiv 2412.10958)
    sizes = {"base": (768, 12, 12), "large": (1024, 24, 16)}
    shape = full_size(sizes[encoder], sizes[decoder])
    hub = {
        "image_size": 256,
        "num_codebooks": 4,
        "codebook_size": 8192,
        "codebook_embed_dim": 32,
        "encoder_model": f"vit_{encoder}_patch14_dinov2.lvd142m",
        "decoder_model": f"vit_{decoder}_patch14_dinov2.lvd142m",
        "tau": 0.07,
    }
    with torch.device("meta"):
        state = to_released(Tokenizer(shape))
        tokenizer = from_released(state, hub)
    assert tokenizer.config == shape
    assert state["quantize.embedding"].shape == (4, 8192, 32)
    of_towers = [
        value.numel()
        for name, value in state.items()
        if not name.startswith("quantize.") and "decoder.model.patch_embed" not in name
    ]
    assert sum(of_towers) / 1e6 == pytest.approx(millions, abs=2)


# ---- What does not fit ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codebooks": 1}, "the config says num_codebooks = 1, but the tensors say 4"),
        ({"codebook_size": 8192}, "the config says codebook_size = 8192, but the tensors say 6"),
        ({"codebook_l2_norm": False}, "codebook_l2_norm = False, but the tensors say True"),
        ({"tau": 0.1}, "the config says tau = 0.1, but the tensors say 0.07"),
        ({"use_rope": True}, "the config says use_rope = True, but the tensors say False"),
        ({"use_ape": False}, "the config says use_ape = False, but the tensors say True"),
        ({"dec_cls_token": False}, "dec_cls_token = False, but the tensors say True"),
        (
            {"decoder_model": "vit_large_patch14_dinov2.lvd142m"},
            r"decoder_model = 'vit_large_patch14_dinov2.lvd142m', but the tensors are \(24, 3\)",
        ),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(weights, changes, message):
    with pytest.raises(ValueError, match=message):
        from_released(weights, SETTINGS | changes)


@pytest.mark.parametrize(
    "name",
    [
        "decoder.model.cls_token",
        "decoder.model.pos_embed",
        "decoder.model.blocks.1.ls2.gamma",
        "decoder.model.norm.bias",
        "decoder.model.patch_embed.proj.bias",
        "encoder.model.cls_token",
    ],
)
def test_a_missing_tensor_is_named(weights, name):
    lacking = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(ValueError, match=rf"fit the model\n  missing     {re.escape(name)} \(\S"):
        from_released(lacking, SETTINGS)


def test_a_quantizer_of_another_kind_is_none_of_theirs(weights):
    lacking = {name: value for name, value in weights.items() if name != "quantize.embedding"}
    with pytest.raises(ValueError, match=r"the tensor 'quantize.embedding' is missing"):
        from_released(lacking, SETTINGS)
    wrong = {"quantize.embedding": torch.zeros(CODEBOOKS, CODES, CHANNELS + 1)}
    with pytest.raises(ValueError, match=r"quantize.embedding is \(4, 6, 6\), needs \(4, 6, 5\)"):
        from_released(weights | wrong, SETTINGS)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"bottleneck": "kl"}, "bottleneck"),
        ({"decoder_class_token": False}, "decoder_class_token"),
        ({"decoder_layer_scale": None}, "decoder_layer_scale"),
        ({"layer_scale": None}, "layer_scale"),
        ({"overlap": 1}, "overlap"),
        ({"encoder.positions": "rope+ape"}, "positions, rope"),
        ({"latent_tokens": "patches", "num_latent_tokens": 9, "codebooks": 3}, "latent_tokens"),
    ],
)
def test_what_their_tokenizer_cannot_express_has_no_released_form(weights, change, difference):
    config = override(released_config(weights, SETTINGS), change)
    with pytest.raises(ValueError, match=rf"or softvq-l-64 have .* differs in {difference}$"):
        to_released(Tokenizer(config))


MIXED = {
    "encoder.positions": "rope+ape",
    "encoder.rope": "mixed",
    "decoder.positions": "rope",
    "decoder.rope": "mixed",
}


@pytest.mark.parametrize(
    "change",
    [
        {"bottleneck": "ae", "codes": 8192, "codebooks": 1},
        MIXED,
        MIXED | {"decoder_class_token": False},
        MIXED | {"decoder_modulation": True, "decoder_layer_scale": None},
    ],
)
def test_other_tokenizers_of_their_code_are_told_by_their_tensors(weights, change):
    config = override(released_config(weights, SETTINGS), change)
    tensors = to_released(Tokenizer(config))
    back = from_released(tensors, {"num_heads": HEADS})
    assert back.config == config
    assert same(to_released(back), tensors)


# ---- Files ----


def test_a_folder_as_the_hub_has_it_loads_and_is_exported_as_one_of_ours(
    weights, images, tmp_path, monkeypatch
):
    hub = tmp_path / "hub"
    hub.mkdir()
    save_file(weights, hub / "model.safetensors")
    write_json(hub / "config.json", SETTINGS)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: hub)
    tokenizer = load_tokenizer("SoftVQVAE/softvq-l-64")
    assert tokenizer.latent_shape == (TOKENS, CHANNELS)
    back = load_tokenizer(export_tokenizer(tokenizer, tmp_path / "ours"))
    assert same(back.state_dict(), tokenizer.state_dict())
    with torch.inference_mode():
        assert torch.equal(back(images), tokenizer(images))


def test_a_checkpoint_of_their_training_loads_without_its_teacher(weights, tmp_path):
    teacher = {
        "repa_model.pos_embed": torch.ones(1, 5, 3),
        "projection.0.weight": torch.ones(2, CHANNELS),
    }
    path = tmp_path / "0000001.pt"
    torch.save({"ema": weights | teacher, "args": Namespace(**SETTINGS)}, path)
    with pytest.warns(UserWarning, match="left out, .* alone: repa_model, projection"):
        tokenizer = load_tokenizer(path)
    assert same(to_released(tokenizer), weights)
