"""What 1024 tokens cost a diffusion transformer against 128: FLOPs, and passes in turns.

    python benchmarks/tokens.py [--preset tiny --tokens 128 1024 --batch 4 --repeats 5
                                 --device auto --precision auto]

At 512 px the paper generates 3.12 images/s from 128 tokens and 0.1 from 1024 on an A100
(section 4.5): 31 times. This says how much of it the transformer itself accounts for. Weights
are random; sampling is so many passes, so the ratio is a sampling's.
"""

import argparse
from functools import partial

import torch
from timing import as_markdown, peak_gigabytes, seconds_in_turns

from maetok_lab.device import autocast, describe, pick_device, pick_precision
from maetok_lab.diffusion.cost import flops
from maetok_lab.diffusion.model import DIFFUSION, DiffusionTransformer
from maetok_lab.hints import choose
from maetok_lab.rng import generator

PAPER = 3.12 / 0.1
LATENT_DIM = 32  # channels of the paper's latents


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny", choices=DIFFUSION)
    parser.add_argument("--tokens", type=int, nargs=2, default=[128, 1024], metavar=("FEW", "MANY"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=["fp32", "bf16", "auto"])
    return parser.parse_args(words)


@torch.inference_mode()
def main(words: list[str] | None = None) -> None:
    """Print the setting, a Markdown table of two rows and what is left of the paper's ratio."""
    options = arguments(words)
    device = pick_device(options.device)
    precision = pick_precision(device, options.precision)
    config = choose(options.preset, DIFFUSION, "preset")
    calls = {}
    for count in options.tokens:
        model = (
            DiffusionTransformer(config, num_tokens=count, latent_dim=LATENT_DIM, num_classes=1000)
            .to(device)
            .eval()
        )
        x = torch.randn(
            options.batch, count, LATENT_DIM, generator=generator(0, "benchmark-tokens")
        ).to(device)
        t, labels = (
            torch.zeros(options.batch, dtype=kind, device=device)
            for kind in (torch.float32, torch.long)
        )
        calls[count] = partial(model, x, t, labels)
    with autocast(device, precision):
        seconds = seconds_in_turns(calls, options.repeats, device)
    few, many = options.tokens
    work = {count: flops(config, count, latent_dim=LATENT_DIM) for count in options.tokens}
    print(
        f"{options.preset} on {describe(device, precision)}: {options.batch} at once, "
        f"peak {peak_gigabytes(device):.1f} GB\n"
    )
    rows = []
    for count in options.tokens:
        slower = seconds[count] / seconds[few]
        rows.append(
            {
                "tokens": count,
                "GFLOP a pass": f"{work[count] / 1e9:.3g}",
                "FLOPs / fewest": f"{work[count] / work[few]:.2f}",
                "ms a pass and image": f"{1000 * seconds[count] / options.batch:.2f}",
                "time / fewest": f"{slower:.2f}",
            }
        )
    print(as_markdown(rows))
    if (few, many) == (128, 1024):
        print(
            f"\nThe paper's ratio is {PAPER:.1f}: "
            f"{PAPER / slower:.1f} times what the passes here differ by."
        )


if __name__ == "__main__":
    main()
