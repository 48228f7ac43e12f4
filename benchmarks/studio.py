"""How long the studios take to answer, in the process that computes their pictures.

    python benchmarks/studio.py --preset tiny --moves 100

Prints median and 95th percentile in milliseconds. A page adds a few milliseconds for the message
and the decoding of a PNG; `tests/widgets/test_browser.py` counts what is seen there. Untrained
tokenizers cost what trained ones do. A GPU changes little at `tiny`: most of it is encoding PNGs.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from maetok_lab.data.images import open_images
from maetok_lab.device import describe, pick_device
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer
from maetok_lab.tokenizer.perceptual import make_perceptual
from maetok_lab.widgets.latent_map import LatentMap
from maetok_lab.widgets.mask_demo import MaskDemo
from maetok_lab.widgets.mask_studio import MaskStudio


def measured(move: Callable[[int], None], count: int) -> str:
    """Median and 95th percentile of `move(0)`, `move(1)`, ... in words."""
    move(count)  # what only the first one costs
    milliseconds = []
    for step in range(count):
        start = time.perf_counter()
        move(step)
        milliseconds.append(1000 * (time.perf_counter() - start))
    middle, late = np.percentile(milliseconds, [50, 95])
    return f"median {middle:.0f} ms, 95th percentile {late:.0f} ms"


def main() -> None:
    """Print the setting and a line a move."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny", choices=sorted(TOKENIZERS))
    parser.add_argument("--moves", type=int, default=100)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = pick_device(options.device)
    model = TOKENIZERS[options.preset]
    val = open_images("emoji", split="val", image_size=model.image_size)
    images, _ = val.batch(torch.arange(64))
    decoders = {"hog": AuxiliaryDecoder(AuxiliaryConfig(), model).eval().to(device)}
    distance = make_perceptual(LossConfig(perceptual="squeezenet")).to(device)
    masked, plain = (Tokenizer(model).to(device).eval() for _ in range(2))

    studio = MaskStudio(masked, images, decoders=decoders, distance=distance)
    demo = MaskDemo(masked, plain, images)
    with torch.inference_mode():
        latents = masked.encode(val.batch(torch.arange(len(val)))[0].to(device))
    walk = LatentMap(latents.cpu(), val, masked, components=0)
    assert studio.view

    def slide(step: int) -> None:
        studio.controls.ratio.value = (step * 7 % 19 + 1) * 0.05

    def brush(step: int) -> None:
        hidden = torch.rand(len(demo.mask), generator=torch.Generator().manual_seed(step)) < 0.5
        demo.view.brushed = hidden.int().tolist()

    def choose(step: int) -> None:
        demo.view.choice = {"picture": step % 12, "kind": ("block", "scattered")[step % 2]}

    def click(step: int) -> None:
        walk.view.point = step * 7 % len(val)
        walk.view.clicks += 1

    print(f"{describe(device, 'fp32')}, preset {options.preset}, {options.moves} moves each")
    print(f"mask studio, its slider: {measured(slide, options.moves)}")
    print(f"mask demo, a brushed patch, two tokenizers: {measured(brush, options.moves)}")
    print(f"mask demo, a picture, {demo.num_ratios} ratios: {measured(choose, options.moves)}")
    print(f"latent map, a click: {measured(click, options.moves)}")


if __name__ == "__main__":
    main()
