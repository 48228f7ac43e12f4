"""How much memory grows over many training steps, and over many moves of the mask views.

    python tests/attack/memory.py [--steps 5000 --moves 1000]

What is measured is the resident memory of a process of its own, after Python's garbage is
collected and glibc and Arrow have given back what they hold free (once in a training Arrow takes
up to 17 MB at once that it does not use), at fifty moments. The first tenth of them warms up;
growth is from the median of the second tenth to that of the last, in per cent.
"""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

import psutil

LIMIT = 2.0  # per cent that memory may grow by
MOMENTS = 50  # of a measurement
ONE_CORE = {"OMP_NUM_THREADS": "1"}


def steps_memory(steps: int) -> float:
    """Growth over a training of the smallest tokenizer, with twenty checkpoints and pictures, and
    with the live panel, whose chart and words are renewed at every step. -> per cent
    """
    return growth(measured("steps", steps))


def moves_memory(moves: int) -> float:
    """Growth with both mask views, each moved so often: ratio at every move, at times order,
    picture, patches, tokens, surgery; a still every fifty moves. -> per cent
    """
    return growth(measured("moves", moves))


def measured(what: str, count: int) -> list[float]:
    """The samples of a process of its own, in MB."""
    command = [sys.executable, __file__, "--measure", what, str(count)]
    # one core: threads of torch each have a heap, which settles late
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | ONE_CORE
    )
    return json.loads(done.stdout.splitlines()[-1])


def growth(samples: list[float]) -> float:
    """From the second tenth of the samples to the last, in per cent."""
    tenth = len(samples) // 10
    early, late = samples[tenth : 2 * tenth], samples[-tenth:]
    return 100 * (statistics.median(late) / statistics.median(early) - 1)


# In the measured process --------------------------------------------------------------------------


def resident() -> float:
    """Resident memory in MB, without garbage."""
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()  # libraries are not looked through again: that takes a tenth of a second
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)
    if arrow := sys.modules.get("pyarrow"):
        arrow.default_memory_pool().release_unused()
    return psutil.Process().memory_info().rss / 1e6


def is_moment(step: int, count: int) -> bool:
    """Whether a sample is taken after `step` of 1 .. count."""
    return step * MOMENTS // count > (step - 1) * MOMENTS // count


def train(steps: int) -> list[float]:
    """Samples of a training."""
    import torch

    from maetok_lab.config import override
    from maetok_lab.data.images import open_images
    from maetok_lab.runs import Run
    from maetok_lab.training.presets import tokenizer_training
    from maetok_lab.training.tokenizer import train_tokenizer
    from maetok_lab.widgets import live

    live.SECONDS_BETWEEN_VIEWS = 0.0  # every record is shown: more than any person sees
    live.LiveTraining._display = lambda self, output: None
    tower = {"width": 16, "depth": 1, "num_heads": 2}
    changes = {
        **{"model.image_size": 16, "model.encoder": tower, "model.decoder": tower},
        **{"model.num_latent_tokens": 4, "precision": "fp32", "workers": 0},
        **{"num_steps": steps, "log_every": 1},
        # all that ever happens has happened in the first tenth
        **dict.fromkeys(("save_every", "picture_every"), max(1, steps // 20)),
    }
    config = override(tokenizer_training("test"), changes)
    images = {split: open_images("emoji", split=split, image_size=16) for split in ("val", "test")}
    torch.set_num_threads(1)
    samples = []
    view = live.LiveTraining("attack", live=True)
    with tempfile.TemporaryDirectory() as folder, Run.open("attack", config, root=folder) as run:
        for record in train_tokenizer(config, images["val"], run, preview=images["test"], cpu=True):
            view.update(record)
            if is_moment(record.step, steps):
                samples.append(resident())
    return samples


def move(moves: int) -> list[float]:
    """Samples of the mask demo and the mask studio, moved in turns."""
    import torch

    from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder
    from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer
    from maetok_lab.widgets.mask_demo import MaskDemo
    from maetok_lab.widgets.mask_studio import MaskStudio

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = TOKENIZERS["test"]
    pair = Tokenizer(config), Tokenizer(config)
    decoders = {"hog": AuxiliaryDecoder(AuxiliaryConfig(), config).eval()}
    images = torch.rand(12, 3, config.image_size, config.image_size) * 2 - 1
    demo = MaskDemo(*pair, images, decoders=decoders, num_ratios=9)
    studio = MaskStudio(pair[0], images, decoders=decoders)
    return asyncio.run(moved(demo, studio, moves))


async def moved(demo: Any, studio: Any, moves: int) -> list[float]:
    """Samples of both, as a page moves them in a kernel that has an event loop."""
    draws = random.Random(0)
    samples = []
    for view in (demo, studio):
        assert view.view
        view._stored = SimpleNamespace(update=lambda output: None)
        view._store()
    for number in range(1, moves + 1):
        move_demo(demo, number, draws)
        move_studio(studio, number, draws)
        if number % 50 == 0:
            demo._store()
            studio._store()
        await asyncio.sleep(0)
        if is_moment(number, moves):
            samples.append(resident())
    return samples


def move_demo(demo: Any, number: int, draws: random.Random) -> None:
    """The slider; every third time patches by hand, every fifth another picture, look deeper."""
    step = draws.randrange(demo.num_ratios)
    brushed = [draws.randrange(2) for _ in range(demo.masks.shape[1])] if number % 3 == 0 else []
    demo.view.set_state({"step": step, "brushed": brushed})
    if number % 5 == 0:
        choice = {"picture": number // 5 % 12, "kind": demo.view.about["kinds"][number // 5 % 3]}
        demo.view.set_state({"choice": choice})
    question = {"open": number % 5 == 0, "step": step, "brushed": brushed}
    demo.view.set_state({"question": question})


def move_studio(studio: Any, number: int, draws: random.Random) -> None:
    """The slider; every third time patches by hand, every fifth another picture and surgery."""
    controls = studio.controls
    controls.ratio.value = draws.randrange(21) / 20
    if number % 3 == 0:
        controls.patches.set_state({"hidden": draws.sample(range(len(studio.mask)), 8)})
    if number % 5 == 0:
        controls.image.value = number // 5 % 12
        # both kinds that draw: the curve of each is computed once
        controls.kind.value = ("random", "block")[number // 5 % 2]
        controls.seed.value = draws.randrange(9)
        controls.tokens.set_state({"last": 3, "selection": [3]})
        controls.surgery.value = ("drop", "noise")[number // 5 % 2]


MEASURES = {"steps": train, "moves": move}


def main() -> None:
    """Measure all, or as a process of its own one thing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--moves", type=int, default=1000)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, count = options.measure
        print(json.dumps(MEASURES[what](int(count))))
        return
    for what in MEASURES:
        count = options.steps if what == "steps" else options.moves
        samples = measured(what, count)
        print(f"{count:,} {what}: {growth(samples):+.2f} % of {samples[-1]:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
