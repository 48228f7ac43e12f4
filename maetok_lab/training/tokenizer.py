"""Train a tokenizer (paper section 3): masked autoencoding with targets, then its decoder.

for record in train_tokenizer(config, images, run): ...
second = decoder_tuning(config, parent=run)
for record in finetune_decoder(second, images, tuned, parent=run): ...

What a step computes, from mask to loss, is in `autoencoding`.
"""

from collections.abc import Iterator
from typing import Any

import torch

from maetok_lab.config import override
from maetok_lab.data.images import ImageSource
from maetok_lab.evaluation.pixels import psnr
from maetok_lab.generation.images import reconstruct
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.tokenizer.masking import MaskingConfig
from maetok_lab.tokenizer.perturbation import PerturbationConfig
from maetok_lab.training.autoencoding import TokenizerTask
from maetok_lab.training.loop import train
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.task import StepRecord


def decoder_tuning(config: TokenizerTraining, *, parent: Run, **changes: Any) -> TokenizerTraining:
    """The second stage (section 3.3): decoder only, no targets, mask ratio from 0.6 down to 0.

    `changes` are further fields, as `override` takes them.
    """
    stage = {
        "trains": "decoder",
        "targets": (),
        "parent": parent.fingerprint,
        "perturbation": PerturbationConfig(),
        "masking": MaskingConfig(ratio="linear", low=0.0, high=0.6),
    }
    return override(config, stage | changes)


def train_tokenizer(
    config: TokenizerTraining,
    images: ImageSource,
    run: Run,
    *,
    preview: ImageSource | None = None,
    cpu: bool = False,
    processes: int = 1,
) -> Iterator[StepRecord]:
    """Train, or continue, into `run`; see `loop.train`.

    Up to 16 `preview` images are reconstructed into runs/NAME/samples at `picture_every`, and
    scored ("val" lines). Raises ValueError for images that are not the config's.
    """
    if config.trains == "decoder":
        raise ValueError(
            "this config tunes a decoder: finetune_decoder trains it, from its parent run"
        )
    return train(TokenizerTask(config, images, preview=preview), run, cpu=cpu, processes=processes)


def finetune_decoder(
    config: TokenizerTraining,
    images: ImageSource,
    run: Run,
    *,
    parent: Run,
    diffusion: Run | None = None,
    preview: ImageSource | None = None,
    cpu: bool = False,
    processes: int = 1,
) -> Iterator[StepRecord]:
    """The second stage, as `train_tokenizer` the first, from the averaged weights of `parent`.

    What makes latents is compared with the parent's before every checkpoint: RuntimeError that
    names what moved. `diffusion` is the run of `config.regeneration`. Raises ValueError for another
    parent or diffusion run than the config's, or one without a checkpoint.
    """
    if config.trains != "decoder":
        raise ValueError(
            "finetune_decoder needs the config of a second stage; make it with decoder_tuning"
        )
    return train(
        TokenizerTask(config, images, parent=parent, diffusion=diffusion, preview=preview),
        run,
        cpu=cpu,
        processes=processes,
    )


def train_to_psnr(
    config: TokenizerTraining,
    images: ImageSource,
    run: Run,
    *,
    validation: ImageSource,
    target: float,
    cpu: bool = False,
) -> Iterator[StepRecord]:
    """`train_tokenizer`, ended by the first checkpoint whose PSNR on `validation` is `target` dB.

    The control for comparisons between latents that were trained unequally well. The summary then
    holds `val_psnr` and `target_psnr`; a run that never met the target has neither. Raises
    ValueError for a finished run that was stopped at another target.
    """
    if run.finished and run.summary.get("target_psnr", target) != target:
        stopped_at = run.summary["target_psnr"]
        raise ValueError(f"run {run.name} was stopped at {stopped_at} dB, not at {target} dB")

    def target_is_met(run: Run) -> dict[str, float] | None:
        reached = validation_psnr(run, validation)
        return {"val_psnr": reached, "target_psnr": target} if reached >= target else None

    return train(TokenizerTask(config, images), run, cpu=cpu, stop_when=target_is_met)


def validation_psnr(run: Run, images: ImageSource) -> float:
    """Mean PSNR in dB of a tokenizer run's averaged weights on all images, unmasked."""
    originals, _ = images.batch(torch.arange(len(images)))
    return float(psnr(reconstruct(load_tokenizer(run.folder), originals), originals).mean())
