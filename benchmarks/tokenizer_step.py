"""Images/s of a tokenizer's training step, and the share of its time that every part takes.

    python benchmarks/tokenizer_step.py [--presets tiny small --rung all --batch 32 --device cpu]
    python benchmarks/tokenizer_step.py --presets maetok-b-128 --batch 2 --random-weights FOLDER

The whole step is timed, then the same step without adversary, without perceptual term, and without targets, in turns: each
difference is the share of what was left out. Teachers, encoder and decoder are timed on their own, forward and backward;
"rest" is what remains (optimizer, average, drawing). Pictures are random and already decoded: reading them is not in it.
Every step is that of a first pass through the images: what a teacher remembers on a CPU is forgotten before it.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from timing import as_markdown, peak_gigabytes, seconds_in_turns
from torch import nn

from maetok_lab.config import override
from maetok_lab.device import autocast, describe, pick_device, pick_precision
from maetok_lab.rng import generator
from maetok_lab.runs import Run
from maetok_lab.tokenizer.auxiliary import compute_targets
from maetok_lab.tokenizer.losses import pixel_loss
from maetok_lab.tokenizer.masking import draw_mask
from maetok_lab.tokenizer.targets import TEACHERS, FeatureTarget
from maetok_lab.training.order import ImageBatch
from maetok_lab.training.loop import make_engine
from maetok_lab.training.autoencoding import TokenizerTraining
from maetok_lab.training.presets import LADDER, TOKENIZER_TRAINING, ladder_training
from maetok_lab.training.loop import training_step
from maetok_lab.training.tokenizer import start


def main(words: list[str] | None = None) -> None:
    """One row a preset."""
    options = arguments(words)
    device, rows = pick_device(options.device), []
    for preset in options.presets:
        config = training(preset, options, pick_precision(device))
        print(
            preset,
            describe(device, config.precision),
            f"{torch.get_num_threads()} threads",
            sep="; ",
        )
        rows.append(
            {
                "preset": preset,
                "batch": config.batch_size,
                **Parts(config, device).measure(options.repeats),
            }
        )
    print(as_markdown(rows))


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--presets", nargs="+", default=["tiny", "small"], choices=TOKENIZER_TRAINING
    )
    parser.add_argument(
        "--rung",
        default="all",
        choices=LADDER,
        help="of the small presets; the paper's have all targets",
    )
    parser.add_argument("--batch", type=int, help="images a step instead of the preset's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--random-weights",
        type=Path,
        help="networks that are not shipped get random weights, kept here",
    )
    return parser.parse_args(words)


def training(preset: str, options: argparse.Namespace, precision: str) -> TokenizerTraining:
    """The preset's training; at the small sizes with all that decoder tuning has too: a rung's targets, the perceptual term."""
    if preset.startswith("maetok"):
        config = TOKENIZER_TRAINING[preset]
        if options.random_weights:
            config = with_random_weights(config, options.random_weights)
    else:
        config = ladder_training(preset, options.rung, losses__perceptual="squeezenet")
    changes = {"precision": precision, "batch_size": options.batch or config.batch_size}
    return override(config, changes)


def with_random_weights(config: TokenizerTraining, folder: Path) -> TokenizerTraining:
    """Files of random weights in place of those on the hub: a step takes as long with them."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = tuple(
        override(target, {"weights": timm_file(TEACHERS[target.target].net, folder)})
        if target.target != "hog"
        else target
        for target in config.targets
    )
    critic, vgg = timm_file("timm:vit_small_patch16_224.dino", folder), folder / "vgg16.safetensors"
    if not vgg.exists():
        from torchvision.models import vgg16

        save_file(vgg16(weights=None).state_dict(), vgg)
    losses = {"losses.perceptual_weights": str(vgg), "losses.adversarial.weights": critic}
    return override(config, {"targets": targets} | losses)


def timm_file(name: str, folder: Path) -> str:
    """Random weights of a network of timm, made once."""
    import timm

    name = name.removeprefix("timm:")
    path = folder / f"{name}.safetensors"
    if not path.exists():
        save_file(timm.create_model(name, pretrained=False).state_dict(), path)
    return str(path)


class Parts:
    """One training's state, and its step with or without some of its parts."""

    def __init__(self, config: TokenizerTraining, device: torch.device):
        self.config, self.device = config, device
        self.engine = make_engine(
            config.batch_size, cpu=device.type == "cpu", all_weights_used=False
        )
        with (
            tempfile.TemporaryDirectory() as folder,
            Run.open("benchmark", config, root=folder) as run,
        ):
            self.state = start(config, run, None, device)
        self.state.step = config.num_steps - 1  # every term counts by then
        objective = self.state.objective
        self.whole = {
            "auxiliary": objective.auxiliary,
            "perceptual": objective.perceptual,
            "adversary": self.state.adversary,
        }
        size, draw = config.model.image_size, generator(0, "benchmark")
        self.images = torch.rand(config.batch_size, 3, size, size, generator=draw) * 2 - 1
        self.there = self.images.to(device)
        mask = draw_mask(
            config.masking, config.batch_size, config.model.grid, progress=1.0, generator=draw
        )
        self.mask = None if mask is None else mask.to(device)

    def step(self, *without: str) -> Callable[[], object]:
        """A training step that leaves out some parts."""
        losses = {
            "perceptual": {"losses.perceptual": "none"},
            "adversary": {"losses.adversarial": None},
        }
        changes = {"targets": ()} if "auxiliary" in without else {}
        for name in set(without) - {"auxiliary"}:
            changes |= losses[name]
        config, count = override(self.config, changes), self.config.batch_size
        picked = TrainingBatch(0, self.images, torch.zeros(count).long(), torch.arange(count))

        def call() -> None:
            self.forget()
            objective = self.state.objective
            objective.auxiliary = (
                nn.ModuleDict() if "auxiliary" in without else self.whole["auxiliary"]
            )
            objective.perceptual = None if "perceptual" in without else self.whole["perceptual"]
            self.state.adversary = None if "adversary" in without else self.whole["adversary"]
            training_step(config, self.state, objective, self.engine, picked, None)

        return call

    def forget(self) -> None:
        """Have every teacher look again."""
        for decoder in self.whole["auxiliary"].values():
            if isinstance(decoder.target, FeatureTarget):
                decoder.target.forget()

    def encoder(self) -> None:
        """Forward and backward."""
        with autocast(self.device, self.config.precision):
            latents = self.state.objective.tokenizer.posterior(self.there, mask=self.mask).mean
        latents.float().square().mean().backward()

    def decoder(self) -> None:
        """Forward and backward, with the pixel loss."""
        model = self.config.model
        shape = (len(self.images), model.num_latent_tokens, model.latent_dim)
        latents = torch.ones(shape, device=self.device, requires_grad=True)
        with autocast(self.device, self.config.precision):
            loss = pixel_loss(
                self.config.losses, self.state.objective.tokenizer.decode(latents), self.there
            )
        loss.backward()

    def teachers(self) -> None:
        """Every target of one batch."""
        self.forget()
        with autocast(self.device, self.config.precision):
            compute_targets(self.whole["auxiliary"], self.there)

    @torch.inference_mode()
    def reconstruct(self) -> torch.Tensor:
        """Encode and decode, as after training."""
        with autocast(self.device, self.config.precision):
            return self.state.ema.module(self.there)

    def measure(self, repeats: int) -> dict[str, object]:
        """Images/s of the whole step and of reconstruction, the parts' shares of the step, peak memory."""
        there = [name for name in ("adversary", "perceptual", "auxiliary") if self.whole[name]]
        less = [there[: n + 1] for n in range(len(there))]  # one part after the other is left out
        calls = {"whole": self.step()} | {
            name: self.step(*without) for name, without in zip(there, less)
        }
        calls |= {
            name: getattr(self, name) for name in ("teachers", "encoder", "decoder", "reconstruct")
        }
        seconds = seconds_in_turns(calls, repeats, self.device)
        whole = seconds["whole"]
        left_out = dict.fromkeys(self.whole, 0.0)
        for before, name in zip(["whole", *there], there):
            left_out[name] = seconds[before] - seconds[name]
        parts = {name: seconds[name] for name in ("encoder", "decoder", "teachers")}
        parts["auxiliary decoders"] = left_out["auxiliary"] - parts["teachers"]
        parts |= {name: left_out[name] for name in ("perceptual", "adversary")}
        parts["rest"] = whole - sum(parts.values())
        count = len(self.images)
        return {
            "images/s": f"{count / whole:.1f}",
            **{name: f"{value / whole:.0%}" for name, value in parts.items()},
            "reconstructed/s": f"{count / seconds['reconstruct']:.1f}",
            "peak GB": f"{peak_gigabytes(self.device):.1f}",
        }


if __name__ == "__main__":
    main()
