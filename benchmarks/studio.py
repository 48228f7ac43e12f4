"""How long the mask studio takes from a move of its slider to the new pictures.

    python benchmarks/studio.py --preset tiny --moves 200

Prints median and 95th percentile in milliseconds, in the process that computes the pictures,
and how many reconstructions ten quick moves cost. An untrained tokenizer costs what a trained
one does. A GPU changes little at `tiny`: most of it is encoding PNGs and one image.
"""

import argparse
import asyncio
import time

import numpy as np
import torch

from maetok_lab.data.images import open_images
from maetok_lab.device import describe, pick_device
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer
from maetok_lab.tokenizer.perceptual import make_perceptual
from maetok_lab.widgets.mask_studio import MaskStudio


def moves_one_by_one(studio: MaskStudio, count: int) -> np.ndarray:
    """Seconds from each move to its pictures. -> (count,)"""
    seconds = []
    for step in range(count):
        start = time.perf_counter()
        studio.controls.ratio.value = (step * 7 % 19 + 1) * 0.05
        seconds.append(time.perf_counter() - start)
    return np.array(seconds)


def reconstructions_of_ten(studio: MaskStudio) -> int:
    """What ten moves, 10 ms apart, compute."""

    async def moves() -> None:
        for step in range(10):
            studio.controls.ratio.value = 0.05 + step * 0.05
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)

    before = studio.computed
    asyncio.run(moves())
    return studio.computed - before


def main() -> None:
    """Print the setting and three lines of numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny", choices=sorted(TOKENIZERS))
    parser.add_argument("--moves", type=int, default=200)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = pick_device(options.device)
    model = TOKENIZERS[options.preset]
    val = open_images("emoji", split="val", image_size=model.image_size)
    images, _ = val.batch(torch.arange(64))
    decoders = {"hog": AuxiliaryDecoder(AuxiliaryConfig(), model).eval().to(device)}
    distance = make_perceptual(LossConfig(perceptual="squeezenet")).to(device)
    studio = MaskStudio(Tokenizer(model).to(device), images, decoders=decoders, distance=distance)
    assert studio.view
    moves_one_by_one(studio, 10)
    milliseconds = 1000 * moves_one_by_one(studio, options.moves)
    print(f"{describe(device, 'fp32')}, preset {options.preset}, {options.moves} moves")
    print(
        f"median {np.median(milliseconds):.0f} ms, "
        f"95th percentile {np.percentile(milliseconds, 95):.0f} ms"
    )
    print(f"ten quick moves: {reconstructions_of_ten(studio)} reconstructions")


if __name__ == "__main__":
    main()
