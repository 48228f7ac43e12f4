"""Guided sampling four ways, at equal output, in one run: model rows, time, images/s.

    python benchmarks/sampling.py [--preset tiny --batch 16 --steps 250 --scale 1.9 --low 0
                                   --high 0.75 --repeats 3 --device auto --precision fp32]

`ours` is maetok_lab.diffusion.sampling: the null pass inside the guidance interval only; `ours,
recorded` is what `generate` does with few images on a CUDA GPU: weights cast once, CUDA graphs.
`both passes` computes it on every step. `authors' caller` doubles the batch before a sampler
that doubles it again (but skips outside the interval), and throws half of the images away, as
the script beside the released SiT does. Weights are random: only their cost matters.
"""

import argparse
import functools
from collections.abc import Callable

import torch
from timing import as_markdown, peak_gigabytes, seconds_in_turns
from torch import Tensor

from maetok_lab.device import Precision, autocast, describe, pick_device, pick_precision
from maetok_lab.diffusion.cost import flops
from maetok_lab.diffusion.graphs import Graphed
from maetok_lab.diffusion.model import DIFFUSION, DiffusionTransformer
from maetok_lab.diffusion.sampling import Guidance, draw_noise, sample
from maetok_lab.hints import choose
from maetok_lab.inference import with_cast_weights
from maetok_lab.rng import generator, seeds_for
from maetok_lab.tokenizer.model import TOKENIZERS

# largest difference over the outputs' std: rounding differs with the batch size
AGREEMENT = {"fp32": 1e-4, "bf16": 0.05}


class Counted:
    """A model that counts the rows it is asked for."""

    def __init__(self, model: Callable[..., Tensor]):
        self.model = model
        self.num_classes = model.num_classes
        self.rows = 0

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.rows += len(x_t)
        return self.model(x_t, t, labels)


def ours(
    model: Counted, noise: Tensor, labels: Tensor, num_steps: int, guidance: Guidance
) -> Tensor:
    """The library's sampler: B rows a step outside the interval, 2B inside."""
    return sample(model, noise, labels, num_steps=num_steps, guidance=guidance, path="linear")


@torch.inference_mode()
def recorded(
    model: Counted, noise: Tensor, labels: Tensor, num_steps: int, guidance: Guidance
) -> Tensor:
    """`ours` with one recording for each batch size; replays are not counted one by one."""
    options = {"num_steps": num_steps, "guidance": guidance, "path": "linear"}
    precision = "fp32"
    if torch.is_autocast_enabled(noise.device.type):
        precision = "bf16"
    return sample(prepared(model.model, precision), noise, labels, **options)


@functools.cache
def prepared(model: DiffusionTransformer, precision: Precision) -> Graphed:
    """As `generate` prepares it, once for all batches: here in the round that warms up."""
    return Graphed(with_cast_weights(model, precision))


@torch.no_grad()
def both_passes(
    model: Counted, noise: Tensor, labels: Tensor, num_steps: int, guidance: Guidance
) -> Tensor:
    """The usual loop: label and null on every step, 2B rows; outside the interval scale 1."""
    x, labels = noise.double(), torch.cat([labels, torch.full_like(labels, model.num_classes)])
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    for t, after in zip(times[:-1], times[1:]):
        time = torch.full((len(labels),), t.item(), device=x.device)
        label, null = model(x.float().repeat(2, 1, 1), time, labels).double().chunk(2)
        scale = guidance.scale if guidance.low <= t <= guidance.high else 1.0
        x = x + (null + scale * (label - null)) * (after - t)
    return x.float()


@torch.no_grad()
def authors_caller(
    model: Counted, noise: Tensor, labels: Tensor, num_steps: int, guidance: Guidance
) -> Tensor:
    """Their script doubles noise and labels, their sampler again where it guides.

    2B rows outside the interval, 4B inside.
    """
    doubled = noise.repeat(2, 1, 1)
    null = torch.full_like(labels, model.num_classes)
    both = torch.cat([labels, null])
    return _their_sampler(model, doubled, both, num_steps, guidance)[: len(noise)]


def _their_sampler(
    model: Counted, noise: Tensor, labels: Tensor, num_steps: int, guidance: Guidance
) -> Tensor:
    x, null = noise.double(), torch.full_like(labels, model.num_classes)
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    for t, after in zip(times[:-1], times[1:]):
        guided = guidance.scale > 1 and guidance.low <= t <= guidance.high
        state, y = (x.repeat(2, 1, 1), torch.cat([labels, null])) if guided else (x, labels)
        v = model(state.float(), torch.full((len(state),), t.item(), device=x.device), y).double()
        if guided:
            label, unlabelled = v.chunk(2)
            v = unlabelled + guidance.scale * (label - unlabelled)
        x = x + v * (after - t)
    return x.float()


CALLERS = {
    "ours": ours,
    "ours, recorded": recorded,
    "both passes": both_passes,
    "authors' caller": authors_caller,
}


def make_model(preset: str, device: torch.device) -> DiffusionTransformer:
    """A preset at its tokenizer's token count, every weight random.

    A fresh model says zero, whatever it is asked.
    """
    latents = TOKENIZERS.get(preset, TOKENIZERS["maetok-b-128"])
    sizes = {
        "num_tokens": latents.num_latent_tokens,
        "latent_dim": latents.latent_dim,
        "num_classes": 1000,
    }
    model = DiffusionTransformer(choose(preset, DIFFUSION, "preset"), **sizes)
    random = generator(0, "benchmark-sampling")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.03, generator=random)
    return model.to(device).eval()


def compare(
    model: Counted,
    noise: Tensor,
    labels: Tensor,
    num_steps: int,
    guidance: Guidance,
    *,
    repeats: int,
    tolerance: float,
) -> list[dict[str, str]]:
    """Rows an image and the median seconds of every caller, alternating.

    SystemExit where their outputs differ.
    """
    rows = {}
    outputs = {}

    def call(name: str) -> None:
        model.rows = 0
        outputs[name] = CALLERS[name](model, noise, labels, num_steps, guidance)
        rows[name] = model.rows / len(noise) or rows["ours"]

    seconds = seconds_in_turns(
        {name: functools.partial(call, name) for name in CALLERS}, repeats, noise.device
    )
    for name, output in outputs.items():
        apart = ((output - outputs["ours"]).abs().max() / outputs["ours"].std()).item()
        if not apart <= tolerance:
            raise SystemExit(
                f"{name} and ours differ by {apart:.2g} standard deviations; "
                f"{tolerance:g} is rounding"
            )
    return [
        {
            "sampler": name,
            "rows an image": f"{rows[name]:g}",
            "rows / ours": f"{rows[name] / rows['ours']:.2f}",
            "seconds": f"{taken:.2f}",
            "time / ours": f"{taken / seconds['ours']:.2f}",
            "images/s": f"{len(noise) / taken:.3g}",
        }
        for name, taken in seconds.items()
    ]


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny", choices=DIFFUSION)
    for name, value in {"batch": 16, "steps": 250, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"scale": 1.9, "low": 0.0, "high": 0.75}.items():
        parser.add_argument(f"--{name}", type=float, default=value)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "auto"])
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Print the setting and a Markdown table."""
    options = arguments(words)
    device = pick_device(options.device)
    precision = pick_precision(device, options.precision)
    guidance = Guidance(options.scale, options.low, options.high)
    model = make_model(options.preset, device)
    noise = draw_noise(
        seeds_for(0, options.batch), model.num_tokens, model.latent_dim, device=device
    )
    labels = (torch.arange(options.batch) % model.num_classes).to(device)
    forward = flops(model.config, model.num_tokens, latent_dim=model.latent_dim) / 1e9
    with autocast(device, precision):
        settings = {"repeats": options.repeats, "tolerance": AGREEMENT[precision]}
        table = compare(Counted(model), noise, labels, options.steps, guidance, **settings)
    print(
        f"{options.preset} on {describe(device, precision)}: {options.batch} images at once, "
        f"{options.steps} Euler steps, "
        f"guidance {guidance.scale:g} on [{guidance.low:g}, {guidance.high:g}], "
        f"{forward:.3g} GFLOP a row, "
        f"peak {peak_gigabytes(device):.1f} GB\n"
    )
    print(as_markdown(table))


if __name__ == "__main__":
    main()
