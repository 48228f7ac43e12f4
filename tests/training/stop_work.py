"""What test_stopping.py starts and stops: a training that says its steps, in any number of
processes.
"""

import sys
from pathlib import Path

import torch

from maetok_lab.config import override
from maetok_lab.data.images import open_images
from maetok_lab.runs import Run
from maetok_lab.training.presets import tokenizer_training
from maetok_lab.training.tokenizer import train_tokenizer


def main(root: str, processes: str, num_steps: str) -> None:
    torch.set_num_threads(1)
    config = tokenizer_training(
        "test", precision="fp32", num_steps=int(num_steps), save_minutes=60.0
    )
    images = open_images("emoji", split="val", image_size=config.model.image_size)
    changes = {"images": images.fingerprint, "save_every": 100_000, "log_every": 1}
    config = override(config, changes)
    with Run.open("stopped", config, root=Path(root)) as run:
        options = {"cpu": True, "processes": int(processes)}
        for record in train_tokenizer(config, images, run, **options):
            print(record.step, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
