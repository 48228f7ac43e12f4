"""In how many parts a batch fits, and that the paper's recipes fit a GPU: that is only traced."""

import dataclasses
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from maetok_lab import nets
from maetok_lab.config import override
from maetok_lab.data.images import open_images
from maetok_lab.device import autocast
from maetok_lab.diffusion.model import DIFFUSION, DiffusionTransformer
from maetok_lab.layers import transformer
from maetok_lab.layers.transformer import recompute_blocks
from maetok_lab.runs import Run
from maetok_lab.tokenizer import perceptual
from maetok_lab.tokenizer.targets import FeatureTarget
from maetok_lab.training import adversary, loop
from maetok_lab.training.autoencoding import TokenizerBatch, TokenizerTask
from maetok_lab.training.diffusion import DiffusionBatch, DiffusionTask, DiffusionTraining
from maetok_lab.training.memory import count_memory, fewest_parts
from maetok_lab.training.order import Share
from maetok_lab.training.presets import DIFFUSION_TRAINING, tokenizer_training
from maetok_lab.training.tokenizer import train_tokenizer

CPU = torch.device("cpu")
GIB = 2**30
# A parameter takes itself, AdamW's moments and its average; gradients are in what a pass takes.
FLOATS_A_PARAMETER = 4


@dataclasses.dataclass
class Alone:
    """As much of an engine as a share of a batch reads."""

    num_processes: int = 1
    process_index: int = 0


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Attention and teachers as a GPU has them, and random weights for what is downloaded."""
    import timm
    from torchvision.models import vgg16

    def create(name, weights, options):
        return timm.create_model(name, pretrained=False, **options)

    def features(self, images, captions=None):
        with torch.no_grad():
            return self.net.feature_map(images, grid=self.grid).flatten(1, 2)

    monkeypatch.setattr(nets, "_create_timm", create)
    monkeypatch.setattr(nets, "weights_fingerprint", lambda model: "random")
    monkeypatch.setattr(perceptual, "_vgg_weights", lambda _: vgg16(weights=None).state_dict())
    monkeypatch.setattr(FeatureTarget, "__call__", features)
    monkeypatch.setattr(transformer, "attend", scaled_dot_product_attention)
    # draws that are read on the host cannot be traced: the discriminator sees whole images
    monkeypatch.setattr(adversary, "half_crop", lambda images, size, generator: images)
    for name in ("trunc_normal_", "xavier_uniform_", "kaiming_uniform_", "normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


def emptied(module: torch.nn.Module) -> None:
    """Replace all tensors by such as take no memory, inside of a fake mode."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                empty = torch.empty(value.shape, dtype=value.dtype)
                part._parameters[name] = torch.nn.Parameter(empty, value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype)


def traced(task, make_batch) -> tuple[float, object]:
    """Bytes of all weights with what belongs to them; `pass_bytes` for `fewest_parts` of images."""
    modules = [task.module]
    if getattr(task, "adversary", None):
        modules.append(task.adversary.discriminator)
        emptied(task.adversary.lecam)
        task.adversary.autocast = autocast(CPU, "bf16")
        modules += [
            d.target.net for d in task.module.auxiliary.values() if hasattr(d.target, "net")
        ]
    task.autocast = autocast(CPU, "bf16")
    weights = 0
    for module in modules:
        emptied(module)
        for parameter in module.parameters():
            weights += parameter.nbytes * (FLOATS_A_PARAMETER if parameter.requires_grad else 1)

    def pass_bytes(images: int) -> tuple[float, float]:
        with count_memory(CPU) as memory:
            share = Share(Alone(), task.config.num_steps - 1, images)
            loss, _ = task.loss(task.module, make_batch(images), share)
            loss.backward()
        for module in modules:
            module.zero_grad()
        return memory[0], memory[1]

    return weights, pass_bytes


def fits(weights, pass_bytes, size: int, *, room: float) -> int:
    """The parts of `size` images that `fewest_parts` finds, after their peak was traced."""
    parts = fewest_parts(size, lambda n: pass_bytes(math.ceil(size / n)), room=room - weights)
    peak = max(pass_bytes(size // parts))
    assert weights + peak <= room
    print(f"{parts} parts, {(weights + peak) / GIB:.1f} GiB")
    return parts


@pytest.mark.parametrize(("preset", "gpus"), [("maetok-b-128", 1), ("maetok-b-128-512", 8)])
def test_the_papers_tokenizers_fit_in_parts(as_on_a_gpu, preset, gpus):
    config = tokenizer_training(preset)
    task = TokenizerTask(config, images=None)
    task.build(CPU)
    if config.recompute:
        recompute_blocks(task.module)
    size = config.model.image_size
    patches = math.prod(config.model.grid)

    def batch(images):
        mask = torch.zeros(images, patches, dtype=torch.bool)
        return TokenizerBatch(torch.empty(images, 3, size, size), mask, None, None)

    with FakeTensorMode(allow_non_fake_inputs=True):
        weights, pass_bytes = traced(task, batch)
        parts = fits(weights, pass_bytes, config.batch_size // gpus, room=60 * GIB)
    assert 1 < parts <= 8


@pytest.mark.parametrize("recompute", [False, True])
def test_the_largest_lightningdit_fits_eight_gpus(as_on_a_gpu, recompute):
    config = DiffusionTraining(
        model=DIFFUSION["lightningdit-xl"],
        num_classes=1000,
        recompute=recompute,
        **DIFFUSION_TRAINING["lightningdit-xl"],
    )
    task = DiffusionTask(config, None)
    task.module = DiffusionTransformer(
        config.model, num_tokens=128, latent_dim=32, num_classes=1000
    )
    if recompute:
        recompute_blocks(task.module)

    def batch(rows):
        x = torch.empty(rows, 128, 32)
        return DiffusionBatch(x, torch.zeros(rows, dtype=torch.long), torch.rand(rows), x)

    with FakeTensorMode(allow_non_fake_inputs=True):
        weights, pass_bytes = traced(task, batch)
        parts = fits(weights, pass_bytes, config.batch_size // 8, room=60 * GIB)
    assert parts == 1


@pytest.mark.parametrize(
    ("room", "parts"), [(1000, 1), (899, 2), (499, 4), (300, 4), (299, 8), (0, 8)]
)
def test_the_fewest_parts_are_taken_whose_images_fit(room, parts):
    # 100 bytes whatever the batch, and 100 an image
    def pass_bytes(n):
        images = math.ceil(8 / n)
        return 100 + 100 * images, 300

    assert fewest_parts(8, pass_bytes, room=room) == parts


def test_a_training_measures_its_first_step_and_learns_the_same(monkeypatch, tmp_path, capsys):
    config = tokenizer_training("test", precision="fp32", num_steps=2, log_every=1)
    images = open_images("emoji", split="val", image_size=config.model.image_size)
    losses = {}
    for accumulate, room in ((1, 1e12), ("fit", 1e12), ("fit", 0)):
        monkeypatch.setattr(loop, "free_memory", lambda device, room=room: room)
        sized = override(config, {"accumulate": accumulate})
        run = Run.open(f"{accumulate}-{room}", sized, root=tmp_path)
        list(train_tokenizer(sized, images, run, cpu=True))
        losses[accumulate, room] = run.metrics("train")["pixel"].tolist()
    assert losses["fit", 1e12] == losses[1, 1e12]
    assert losses["fit", 0] == pytest.approx(losses[1, 1e12], abs=1e-5)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" goes")[1][:18] for line in said] == [
        " through in 1 part",
        " through in 8 part",
    ]


def test_recomputing_blocks_changes_no_bit(tmp_path):
    config = tokenizer_training(
        "test", precision="fp32", num_steps=3, log_every=1, model__encoder__drop_path=0.5
    )
    images = open_images("emoji", split="val", image_size=config.model.image_size)
    losses = []
    for recompute in (False, True):
        sized = override(config, {"recompute": recompute})
        run = Run.open(f"{recompute}", sized, root=tmp_path)
        list(train_tokenizer(sized, images, run, cpu=True))
        losses.append(run.metrics("train")["pixel"].tolist())
    assert losses[0] == losses[1]
