"""How fast images come from files: listing, identity, decoding, caching of latents, evaluation.

    python benchmarks/images.py --files 2000 --workers 0 1 2

Makes a tree of JPEGs (500 x 375, as ImageNet's are) in a temporary folder, or takes `--source`.
Prints seconds of listing and of its identity, the first time and the second, then images a second
at `--size` px for each number of workers, as ratios to Pillow's plain decoding in one process.
`--caching` repeats the caching of latents with a tokenizer that costs nothing, so that only reading
is timed, and counts how often each image was decoded.
"""

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from maetok_lab.data import images as images_module
from maetok_lab.data.images import ImageSource, open_images
from maetok_lab.data.latents import LatentCaching, write_latents
from maetok_lab.data.loading import Request, batches_in_order, read_ahead
from maetok_lab.device import keep_freed_memory
from maetok_lab.rng import generator
from maetok_lab.runs import Run

BATCH = 32
DIFFERENT = 32  # photographs that a tree is made of; each file has its number behind it


class Means(nn.Module):
    """A tokenizer that costs nothing: the mean colours of 4 x 4 fields."""

    fingerprint = "means"
    latent_shape = (16, 3)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 16, 3)"""
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(2).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, 3) -> (B, 3, 4, 4)"""
        return latents.transpose(1, 2).unflatten(2, (4, 4))


def make_tree(root: Path, count: int, size: tuple[int, int], classes: int) -> None:
    """Write `count` JPEGs of `size` into root/train, and a few into root/val."""
    random = np.random.default_rng(0)
    encoded = []
    for _ in range(DIFFERENT):
        coarse = random.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        noisy = (smooth + random.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    for number in range(count + DIFFERENT):
        split = "train" if number < count else "val"
        folder = root / split / f"n{number % classes:08d}"
        if number < 2 * classes or split == "val":
            folder.mkdir(parents=True, exist_ok=True)
        data = encoded[number % DIFFERENT] + number.to_bytes(4, "big")
        (folder / f"{number:07d}.jpg").write_bytes(data)


def opening(source: str, size: int) -> list[float]:
    """Seconds of listing and of the fingerprint, in a process of its own."""
    code = """
import sys, time, warnings
from maetok_lab.data import images as images_module
warnings.simplefilter("ignore")
images_module._IN_MEMORY = 0
start = time.perf_counter()
images = images_module.open_images(sys.argv[1], image_size=int(sys.argv[2]))
middle = time.perf_counter()
images.fingerprint
print(middle - start, time.perf_counter() - middle)
"""
    command = [sys.executable, "-c", code, source, str(size)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(word) for word in output.split()]


def rate(work: Callable[[], object], count: int) -> float:
    """Images a second of work on `count` images."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def plain_decoding(images: ImageSource, count: int) -> float:
    """Images a second of Pillow alone: decoded to RGB at their own size, in this process."""
    files = [images._listing.files[row] for row in images._rows[:count]]

    def decode_all() -> None:
        for file in files:
            Image.open(file).convert("RGB")

    return rate(decode_all, len(files))


def random_reading(images: ImageSource, count: int, workers: int) -> float:
    """Images a second of a training's order."""
    order = torch.randperm(len(images), generator=generator(0, "benchmark"))[:count]
    requests = map(Request, order.split(BATCH))
    reader = read_ahead(images, requests, workers=workers)
    return rate(lambda: sum(len(pictures.indices) for pictures in reader), len(order))


def caching(images: ImageSource, workers: int, folder: str) -> tuple[float, float]:
    """Images a second of caching both views, and decodes of each image (0 worker: counted)."""
    config = LatentCaching(tokenizer=Means.fingerprint, images=images.fingerprint)
    decodes = 0
    decode = ImageSource._decode

    def counted(source: ImageSource, row: int, crop: tuple[float, ...] | None = None) -> object:
        nonlocal decodes
        decodes += 1
        return decode(source, row, crop)

    ImageSource._decode = counted
    run = Run.open(f"cache-{workers}", config, root=folder)
    device = torch.device("cpu")
    shards = write_latents(Means(), images, config, run, device=device, workers=workers)
    speed = rate(lambda: list(shards), len(images))
    run.close()
    ImageSource._decode = decode
    return speed, decodes / len(images)


def main() -> None:
    """Print listing, then a table by workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="a folder, Parquet or tars of your own")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--pixels", type=int, nargs=2, default=(500, 375))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--crop", default="center")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=1000, help="that are decoded at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    images_module._IN_MEMORY = 0  # as at ImageNet's size: nothing is held decoded
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MAETOK_LAB_CACHE"] = f"{folder}/digests"
        source = options.source
        if not source:
            source = f"{folder}/images"
            make_tree(Path(source), options.files, tuple(options.pixels), options.classes)
        for time_of in ("first", "second"):
            listing, identity = opening(source, options.size)
            print(f"{time_of} time: listed in {listing:.2f} s, identity in {identity:.2f} s")

        images = open_images(source, image_size=options.size, crop=options.crop)
        count = min(options.images, len(images))
        plain = plain_decoding(images, count)
        print(f"{len(images):,} images, crop {options.crop}; Pillow decodes {plain:.0f}/s (1.00)")
        print("workers | training | caching, both views | evaluation | decodes an image")
        for workers in options.workers:
            reading = random_reading(images, count, workers) / plain
            cached, decodes = caching(images, workers, folder)
            batches = batches_in_order(images, BATCH, workers=workers)
            evaluated = rate(lambda batches=batches: sum(len(batch) for batch, _ in batches), count)
            evaluated *= len(images) / count / plain
            times = f"{decodes:.2f}" if workers == 0 else "in workers"
            ratios = f"{reading:8.2f} | {cached / plain:19.2f} | {evaluated:10.2f}"
            print(f"{workers:7} | {ratios} | {times}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"the largest worker took {used:.0f} MB")


if __name__ == "__main__":
    main()
