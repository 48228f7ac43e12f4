"""Make a generator from a seed and a named stream.

Every draw in the project comes from `generator(seed, "what it is for", step)`, so nothing depends
on how many draws were made before: a run that is stopped and continued draws what it would have
drawn.
"""

import hashlib

import torch


def stream_seed(seed: int, *stream: str | int) -> int:
    """A 63-bit seed of `seed` and every part of the stream, the same in every process."""
    # not hash(), which differs from process to process; 63 bits are what manual_seed takes
    digest = hashlib.sha256(repr((int(seed), *stream)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *stream: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch generator for one named stream: `generator(0, "mask", step)`."""
    # CPU and GPU draw different numbers from one seed: what must not depend on the device, such
    # as the noise of a sample, is drawn on the CPU
    return torch.Generator(device=device).manual_seed(stream_seed(seed, *stream))


def seeds_for(seed: int, count: int, *, start: int = 0, stream: str = "sample") -> list[int]:
    """A seed for each of images `start` .. `start + count - 1`, whatever batch an image is in."""
    return [stream_seed(seed, stream, index) for index in range(start, start + count)]


def seed_step(seed: int, step: int) -> None:
    """Reseed torch's global generator at a training step."""
    # dropout and drop path draw from no other
    torch.manual_seed(stream_seed(seed, "modules", step))
