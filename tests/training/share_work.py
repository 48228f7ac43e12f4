"""What test_processes.py runs in one process and in two: `share_work.py ROOT NAME` trains both
models into ROOT.
"""

import dataclasses
import sys
from types import SimpleNamespace

import torch
from accelerate import PartialState

from maetok_lab.data import batches
from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.diffusion.model import DiffusionConfig
from maetok_lab.runs import Run
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig
from maetok_lab.tokenizer.discriminators import AdversarialConfig
from maetok_lab.tokenizer.losses import LossConfig
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.tokenizer.towers import TowerConfig
from maetok_lab.training.diffusion import DiffusionTraining, train_diffusion
from maetok_lab.training.optim import OptimizerConfig
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.tokenizer import train_tokenizer

TOWER = TowerConfig(width=16, depth=1, num_heads=2)
COMMON = {
    "num_steps": 6,
    "batch_size": 8,
    "precision": "fp32",
    "log_every": 1,
    "optimizer": OptimizerConfig(learning_rate=1e-3),
}
ADVERSARIAL = AdversarialConfig(
    discriminator="patchgan", width=8, layers=2, trains_from=1, counts_from=3, learning_rate=1e-3
)
TOKENIZER = TokenizerTraining(
    model=TokenizerConfig(
        image_size=16,
        patch_size=4,
        num_latent_tokens=4,
        latent_dim=3,
        encoder=TOWER,
        decoder=TOWER,
        bottleneck="kl",
    ),
    targets=(AuxiliaryConfig(tower=TOWER),),
    losses=LossConfig(perceptual="none", kl_weight=1e-3, adversarial=ADVERSARIAL),
    **COMMON,
)
DIFFUSION = DiffusionTraining(
    model=DiffusionConfig(width=16, depth=1, num_heads=2),
    num_classes=3,
    ema_decays=(0.9,),
    **COMMON,
)


class Averages(torch.nn.Module):
    fingerprint = "weights"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).transpose(1, 2)


class Pictures(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.labels)


def pictures() -> Pictures:
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.arange(12) % 3
    return Pictures(
        labels=labels,
        flippable=torch.zeros(12, dtype=torch.bool),
        image_size=16,
        fingerprint="pictures",
        in_memory=True,
        count_broken=lambda messages: None,
        batch=lambda index, flip: (images[index], labels[index]),
        read=lambda index, flip, scale_crops: batches.Pictures((images[index] + 1) * 127.5, index),
    )


def open_run(state: PartialState, root: str, name: str, config) -> Run:
    """The first process makes the run and holds its lock; the others read it."""
    with state.main_process_first():
        return Run.open(name, config, root=root) if state.is_main_process else Run(f"{root}/{name}")


def main(root: str, name: str) -> None:
    state = PartialState(cpu=True)
    # one write, with its end of line: two processes share the pipe
    print(f"process {state.process_index} of {state.num_processes}\n", end="", flush=True)
    caching = LatentCaching(tokenizer="weights", images="pictures", dtype="fp32", shard_size=5)
    cache = open_run(state, root, f"cache-{name}", caching)
    shards = list(write_latents(Averages(), pictures(), caching, cache, device=torch.device("cpu")))
    assert (
        len(shards) == {(1, 0): 3, (2, 0): 2, (2, 1): 1}[state.num_processes, state.process_index]
    )
    latents = LatentDataset(Run(f"{root}/cache-{name}"))
    tokenizer = open_run(state, root, f"tokenizer-{name}", TOKENIZER)
    for record in train_tokenizer(TOKENIZER, pictures(), tokenizer, cpu=True):
        assert record.losses
    diffusion = open_run(state, root, f"diffusion-{name}", DIFFUSION)
    for record in train_diffusion(DIFFUSION, latents, diffusion, cpu=True, validation=latents):
        assert record.losses
    if state.num_processes > 1:
        odd = dataclasses.replace(DIFFUSION, batch_size=7)
        try:
            next(train_diffusion(odd, latents, open_run(state, root, f"odd-{name}", odd), cpu=True))
        except ValueError as problem:
            print(f"{problem}\n", end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
