"""Training steps of a diffusion transformer: images/s, and their share of the matrix rate.

    python benchmarks/diffusion_step.py [--preset tiny --batch 64 --steps 20 --device auto
                                         --precision auto --compile]

The loop is `train_diffusion` itself on a cache of random latents: picking the batch, both
passes, clipping, the preset's optimizer, EMA and the guard, between two log events. The rate is
that of square matrix products in the same precision, measured in the same run.
"""

import argparse
import itertools
import tempfile
import time
import warnings
from pathlib import Path

import torch
from timing import as_markdown, peak_gigabytes, wait_for

from maetok_lab.data.latents import LatentDataset
from maetok_lab.device import DTYPES, Precision, describe, pick_device, pick_precision
from maetok_lab.diffusion.cost import flops
from maetok_lab.diffusion.model import DIFFUSION
from maetok_lab.experiments.planner import random_latents
from maetok_lab.runs import Run
from maetok_lab.tokenizer.model import TOKENIZERS
from maetok_lab.training.diffusion import DiffusionTraining, train_diffusion
from maetok_lab.training.presets import diffusion_training

WARMUP = 3
# backward is two products for each one of forward: one for the weights, one for what came in
PASSES = 3


def seconds_a_step(
    config: DiffusionTraining, latents: LatentDataset, root: Path, device: torch.device
) -> float:
    """Of a training that is left before its last step, where it would log and save."""
    run = Run.open("training", config, root=root)
    steps = train_diffusion(config, latents, run, cpu=device.type == "cpu")
    for _ in itertools.islice(steps, WARMUP):
        pass
    wait_for(device)
    begin = time.perf_counter()
    measured = sum(1 for _ in itertools.islice(steps, config.num_steps - WARMUP - 1))
    wait_for(device)
    seconds = time.perf_counter() - begin
    steps.close()
    run.close()
    return seconds / measured


def matrix_rate(device: torch.device, precision: Precision, *, seconds: float = 0.3) -> float:
    """FLOP/s of square matrix products, the best of those that fit into `seconds`."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        wait_for(device)
        begin = time.perf_counter()
        a @ b
        wait_for(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny", choices=DIFFUSION)
    parser.add_argument("--batch", type=int, help="the preset's by default")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["fp32", "bf16", "auto"])
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Print the setting and a Markdown table of one row."""
    options = arguments(words)
    device = pick_device(options.device)
    precision = pick_precision(device, options.precision)
    endless = 10**9
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # torch's RMSNorm in bf16
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        tokenizer = TOKENIZERS.get(options.preset, TOKENIZERS["maetok-b-128"])
        latents = random_latents(Path(folder), tokenizer, device)
        config = diffusion_training(
            options.preset,
            latents,
            num_classes=1000,
            precision=precision,
            compile=options.compile,
            num_steps=WARMUP + options.steps + 1,
            log_every=endless,
            save_every=endless,
            picture_every=endless,
            **({"batch_size": options.batch} if options.batch else {}),
        )
        before = matrix_rate(device, precision)
        seconds = seconds_a_step(config, latents, Path(folder), device)
        rate = max(before, matrix_rate(device, precision))
    work = (
        PASSES
        * flops(config.model, latents.num_tokens, latent_dim=latents.latent_dim)
        * config.batch_size
    )
    print(
        f"{options.preset} on {describe(device, precision)}: "
        f"{latents.num_tokens} x {latents.latent_dim} latents\n"
    )
    row = {
        "batch": config.batch_size,
        "optimizer": config.optimizer.name,
        "ms a step": f"{1000 * seconds:.1f}",
        "images/s": f"{config.batch_size / seconds:.1f}",
        "GFLOP an image": f"{work / config.batch_size / 1e9:.3g}",
        "GFLOP/s": f"{work / seconds / 1e9:.0f}",
        "matrix products, GFLOP/s": f"{rate / 1e9:.0f}",
        "share of it": f"{work / seconds / rate:.2%}",
        "peak GB": f"{peak_gigabytes(device):.1f}",
    }
    print(as_markdown([row]))


if __name__ == "__main__":
    main()
