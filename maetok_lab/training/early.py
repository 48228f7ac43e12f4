"""Training that stops at a stated PSNR: the control for comparisons between latents that were trained unequally well."""

from collections.abc import Iterator

import torch

from maetok_lab.data.images import ImageSource
from maetok_lab.evaluation.pixels import psnr
from maetok_lab.generation.images import reconstruct
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.training.objective import TokenizerTraining
from maetok_lab.training.records import StepRecord
from maetok_lab.training.tokenizer import train_tokenizer


def train_to_psnr(
    config: TokenizerTraining,
    images: ImageSource,
    run: Run,
    *,
    validation: ImageSource,
    target: float,
    cpu: bool = False,
) -> Iterator[StepRecord]:
    """`train_tokenizer`, ended at the first checkpoint whose mean PSNR on `validation` is at least `target` dB.

    So `config.save_every` is how finely it can be met. The summary holds `val_psnr` and `target_psnr`. A run that ends
    without having met the target is finished too, and its summary has neither. Raises ValueError for a finished run that
    was stopped at another target.
    """
    if run.finished:
        if run.summary.get("target_psnr", target) != target:
            raise ValueError(
                f"run {run.name} was stopped at {run.summary['target_psnr']} dB, not at {target} dB"
            )
        return
    if run.checkpoint_steps() and _stop(config, run, validation, target):
        return
    training = train_tokenizer(config, images, run, cpu=cpu)
    for record in training:
        yield record
        if record.step in run.checkpoint_steps() and _stop(config, run, validation, target):
            training.close()
            return


def validation_psnr(run: Run, images: ImageSource) -> float:
    """Mean PSNR in dB of a tokenizer run's averaged weights on all images, unmasked."""
    originals = images.batch(torch.arange(len(images)))[0]
    return float(psnr(reconstruct(load_tokenizer(run.folder), originals), originals).mean())


def _stop(config: TokenizerTraining, run: Run, validation: ImageSource, target: float) -> bool:
    """Finish the run if its newest checkpoint has met the target."""
    reached, step = validation_psnr(run, validation), run.checkpoint_steps()[-1]
    if reached < target:
        return False
    run.finish(
        {
            "steps": step,
            "images": step * config.batch_size,
            "val_psnr": reached,
            "target_psnr": target,
        }
    )
    return True
