"""Images/s of a tokenizer's training step, and the share of its time that every part takes.

    python benchmarks/tokenizer_step.py [--presets tiny small --rung all --batch 32
                                         --device cpu]
    python benchmarks/tokenizer_step.py --presets maetok-b-128 --batch 2
                                        --random-weights FOLDER

The whole step is that of the training loop (`training.loop.training_step`). It is timed, then
the same step without adversary, without perceptual term, and without targets, in turns: each
difference is the share of what was left out. Teachers, encoder and decoder are timed on their
own, forward and backward; "rest" is what remains (optimizer, average, drawing). Pictures are
random and already decoded: reading them is not in it. Every step is that of a first pass
through the images: what a teacher remembers on a CPU is forgotten before it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from timing import as_markdown, peak_gigabytes, seconds_in_turns
from torch import nn

from maetok_lab.config import override
from maetok_lab.device import autocast, describe, pick_device, pick_precision
from maetok_lab.rng import generator
from maetok_lab.tokenizer.auxiliary import compute_targets
from maetok_lab.tokenizer.losses import pixel_loss
from maetok_lab.tokenizer.targets import TEACHERS, FeatureTarget
from maetok_lab.training.autoencoding import TokenizerBatch, TokenizerTask
from maetok_lab.training.loop import State, make_engine, training_step
from maetok_lab.training.presets import TOKENIZER_TRAINING, ladder_training
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.rungs import RUNGS


def main(words: list[str] | None = None) -> None:
    """One row a preset."""
    options = arguments(words)
    device = pick_device(options.device)
    rows = []
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
        choices=RUNGS,
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
    """The preset's training.

    At the small sizes with all that decoder tuning has too: a rung's targets, the perceptual term.
    """
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
    critic = timm_file("timm:vit_small_patch16_224.dino", folder)
    vgg = folder / "vgg16.safetensors"
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
        self.config = config
        self.device = device
        self.task = TokenizerTask(config, images=None)
        engine = make_engine(config.batch_size, cpu=device.type == "cpu", task=self.task)
        self.state = State(self.task, engine)
        self.last_step = config.num_steps - 1  # every term counts by then
        self.whole = {
            "auxiliary": self.task.module.auxiliary,
            "perceptual": self.task.module.perceptual,
            "adversary": self.task.adversary,
        }
        size = config.model.image_size
        draws = generator(0, "benchmark")
        images = torch.rand(config.batch_size, 3, size, size, generator=draws) * 2 - 1
        self.images = images.to(device)
        mask = self.task.draw_mask(self.last_step)
        self.mask = None if mask is None else mask.to(device)

    def step(self, *without: str) -> Callable[[], object]:
        """A training step that leaves out some parts."""
        changes = {}
        if "auxiliary" in without:
            changes["targets"] = ()
        if "perceptual" in without:
            changes["losses.perceptual"] = "none"
        if "adversary" in without:
            changes["losses.adversarial"] = None
        config = override(self.config, changes)
        parts = {name: None if name in without else part for name, part in self.whole.items()}

        def call() -> None:
            self.forget()
            objective = self.task.module
            objective.auxiliary = parts["auxiliary"] or nn.ModuleDict()
            objective.perceptual = parts["perceptual"]
            self.task.adversary = parts["adversary"]
            self.task.config = config
            self.state.step = self.last_step
            noise = self.task.draw_noise(self.last_step, self.device)
            training_step(self.state, TokenizerBatch(self.images, self.mask, noise, None))

        return call

    def forget(self) -> None:
        """Have every teacher look again."""
        for decoder in self.whole["auxiliary"].values():
            if isinstance(decoder.target, FeatureTarget):
                decoder.target.forget()

    def encoder(self) -> None:
        """Forward and backward."""
        with autocast(self.device, self.config.precision):
            latents = self.task.model.posterior(self.images, mask=self.mask).mean
        latents.float().square().mean().backward()

    def decoder(self) -> None:
        """Forward and backward, with the pixel loss."""
        model = self.config.model
        shape = (len(self.images), model.num_latent_tokens, model.latent_dim)
        latents = torch.ones(shape, device=self.device, requires_grad=True)
        with autocast(self.device, self.config.precision):
            reconstructions = self.task.model.decode(latents)
            loss = pixel_loss(self.config.losses, reconstructions, self.images)
        loss.backward()

    def teachers(self) -> None:
        """Every target of one batch."""
        self.forget()
        with autocast(self.device, self.config.precision):
            compute_targets(self.whole["auxiliary"], self.images)

    @torch.inference_mode()
    def reconstruct(self) -> torch.Tensor:
        """Encode and decode, as after training."""
        with autocast(self.device, self.config.precision):
            return self.state.emas["ema"].module(self.images)

    def measure(self, repeats: int) -> dict[str, object]:
        """Images/s of the step and of reconstruction, the parts' shares of it, peak memory."""
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
