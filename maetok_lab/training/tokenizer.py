"""Train a tokenizer (paper section 3): masked autoencoding with auxiliary targets, then tuning of the pixel decoder.

for record in train_tokenizer(config, images, run): ...
for record in finetune_decoder(decoder_tuning(config, parent=run), images, tuned_run, parent=run): ...
"""

from collections.abc import Iterator
from typing import Any

import torch

from maetok_lab.config import override
from maetok_lab.data.images import ImageSource
from maetok_lab.device import autocast
from maetok_lab.pictures import image_grid, save_png, to_uint8
from maetok_lab.rng import seed_step
from maetok_lab.runs import Run
from maetok_lab.tokenizer.masking import MaskingConfig
from maetok_lab.training import common
from maetok_lab.training.adversary import Adversary
from maetok_lab.training.batches import training_batches
from maetok_lab.training.common import Share
from maetok_lab.training.objective import Objective, TokenizerTraining
from maetok_lab.training.records import StepRecord
from maetok_lab.training.step import State, caption_batch, training_step


def decoder_tuning(config: TokenizerTraining, *, parent: Run, **changes: Any) -> TokenizerTraining:
    """The second stage of `config` (section 3.3): decoder only, no targets, mask ratio from 0.6 linearly to 0.

    `changes` are further overrides with dots as double underscores: `num_steps=600, optimizer__learning_rate=1e-4`.
    """
    stage = {"trains": "decoder", "targets": (), "parent": parent.fingerprint}
    stage["masking"] = MaskingConfig(ratio="linear", low=0.0, high=0.6)
    return override(
        config, stage | {name.replace("__", "."): value for name, value in changes.items()}
    )


def train_tokenizer(
    config: TokenizerTraining,
    images: ImageSource,
    run: Run,
    *,
    preview: ImageSource | None = None,
    cpu: bool = False,
) -> Iterator[StepRecord]:
    """Train, or continue, into `run`; yields one record a step. A finished run yields nothing.

    `preview` images (at most 16 of them) are reconstructed into runs/NAME/samples at `picture_every` and scored ("val" lines).
    Of several processes only the first writes; the others may hold a `Run` that only reads.
    Raises NonFiniteTraining after several steps without a finite gradient, ValueError for sizes that do not fit.
    """
    if config.trains == "decoder":
        raise ValueError(
            "this config tunes a decoder: finetune_decoder trains it, from its parent run"
        )
    yield from _train(config, images, run, None, preview, cpu)


def finetune_decoder(
    config: TokenizerTraining,
    images: ImageSource,
    run: Run,
    *,
    parent: Run,
    preview: ImageSource | None = None,
    cpu: bool = False,
) -> Iterator[StepRecord]:
    """The second stage, as `train_tokenizer` does the first: the decoder learns on from the averaged weights of `parent`.

    `config` is made by `decoder_tuning`. Whatever makes latents is frozen, and is compared bit for bit with the parent's
    before every checkpoint, so also at the end: RuntimeError that names what moved, and nothing of it is written.
    Raises ValueError too for another parent than the config's, or one without a checkpoint.
    """
    if config.trains != "decoder":
        raise ValueError(
            "finetune_decoder needs the config of a second stage; make it with decoder_tuning"
        )
    yield from _train(config, images, run, parent, preview, cpu)


def _train(
    config: TokenizerTraining,
    images: ImageSource,
    run: Run,
    parent: Run | None,
    preview: ImageSource | None,
    cpu: bool,
) -> Iterator[StepRecord]:
    if run.finished:
        return
    check_images(config, images)
    # Decoders keep weights that nothing uses (see LatentDecoder), and without a mask its token has no gradient.
    engine = common.make_engine(
        config.batch_size, parts=config.accumulate, cpu=cpu, all_weights_used=False
    )
    writes = engine.is_main_process
    state = start(config, run, parent, engine.device)
    if writes:
        run.rewind_metrics(state.step)
    if config.compile:
        state.objective.compile_towers()
    forward = engine.prepare_model(state.objective)
    size = config.batch_size
    rows = Share(engine, state.step, size).rows
    for picked in training_batches(images, config, start_step=state.step, rows=rows):
        terms = training_step(
            config, state, forward, engine, picked, caption_batch(config, images, picked.indices)
        )
        step = state.step = state.step + 1
        last = step == config.num_steps
        losses = picture = None
        if step % config.log_every == 0 or last:
            losses = {
                name: engine.reduce(value.detach(), "mean").item() for name, value in terms.items()
            }
            if writes:
                run.log(
                    {
                        "step": step,
                        "images": step * size,
                        "split": "train",
                        **losses,
                        "skipped": state.guard.skipped,
                    }
                )
        if writes and preview is not None and (step % config.picture_every == 0 or last):
            picture = write_preview(config, state, preview, run, engine.device)
        if writes and (step % config.save_every == 0 or last):
            save(state, run)
        yield (record := StepRecord(step, config.num_steps, step * size, losses, picture))
        if record.stops(engine.num_processes):
            return save(state, run)
    if writes:
        run.finish(
            {
                "steps": state.step,
                "images": state.step * size,
                "skipped": state.guard.skipped,
                **last_losses(run),
            }
        )


def start(config: TokenizerTraining, run: Run, parent: Run | None, device: torch.device) -> State:
    """Fresh weights (or the parent's, for decoder tuning), or the state of the run's newest checkpoint."""
    seed_step(config.seed, -1)
    objective, frozen = Objective(config).to(device), {}
    if config.trains == "decoder":
        if parent is None or parent.fingerprint != config.parent:
            came = "none" if parent is None else f"run {parent.name} with {parent.fingerprint}"
            raise ValueError(
                f"decoder tuning needs the run with fingerprint {config.parent} as its parent, not {came}"
            )
        trained = parent.load_checkpoint(groups=["ema"])
        if trained is None:
            raise ValueError(
                f"decoder tuning starts from run {parent.name}, which has no checkpoint yet"
            )
        objective.tokenizer.load_state_dict(trained.tensors["ema"])
        frozen = {
            name: value
            for name, value in trained.tensors["ema"].items()
            if name.startswith(objective.frozen)
        }
    optimizers = common.make_optimizers(
        config.optimizer, {"tokenizer": objective.tokenizer, "auxiliary": objective.auxiliary}
    )
    ema = common.Ema(objective.tokenizer, config.ema_decay)
    state = State(objective, ema, optimizers, common.Guard(), frozen=frozen)
    if config.losses.adversarial:
        state.adversary = Adversary(
            config.losses.adversarial,
            config.optimizer,
            image_size=config.model.image_size,
            precision=config.precision,
            seed=config.seed,
            device=device,
        )
    checkpoint = run.load_checkpoint()
    if checkpoint:
        objective.tokenizer.load_state_dict(checkpoint.tensors["model"])
        objective.auxiliary.load_state_dict(checkpoint.tensors.get("auxiliary", {}))
        state.ema.module.load_state_dict(checkpoint.tensors["ema"])
        common.load_optimizer_tensors(optimizers, checkpoint.tensors["optimizer"])
        state.step, state.guard.skipped = checkpoint.step, checkpoint.state["skipped"]
        if state.adversary:
            state.adversary.load(
                checkpoint.tensors["discriminator"], checkpoint.tensors["discriminator_optimizer"]
            )
            state.adversary.guard.skipped = checkpoint.state["discriminator_skipped"]
    objective.train()
    return state


def save(state: State, run: Run) -> None:
    """Write everything that continuing needs, unless something moved that decoder tuning must leave alone."""
    for weights in (state.objective.tokenizer, state.ema.module):
        now = weights.state_dict()
        moved = [
            name for name, value in state.frozen.items() if not torch.equal(now[name].cpu(), value)
        ]
        if moved:
            raise RuntimeError(
                f"decoder tuning moved what makes the latents: {', '.join(moved[:5])} of {len(moved)} tensors"
            )
    skipped = {"skipped": state.guard.skipped}
    if state.adversary:
        skipped["discriminator_skipped"] = state.adversary.guard.skipped
    run.save_checkpoint(state.step, state.tensors(), skipped)


@torch.inference_mode()
def write_preview(
    config: TokenizerTraining, state: State, preview: ImageSource, run: Run, device: torch.device
) -> str:
    """Originals above the EMA's reconstructions, eight a row, into the run; logs their PSNR. -> the picture's path"""
    images, _ = preview.batch(torch.linspace(0, len(preview) - 1, min(16, len(preview))).long())
    with autocast(device, config.precision):
        reconstructions = state.ema.module(images.to(device)).cpu()
    error = (
        (to_uint8(reconstructions).double() - to_uint8(images).double()).square().flatten(1).mean(1)
    )
    psnr = (10 * torch.log10(255**2 / error.clamp(min=1e-12))).mean().item()
    run.log(
        {"step": state.step, "images": state.step * config.batch_size, "split": "val", "psnr": psnr}
    )
    rows = [row for pair in zip(images.split(8), reconstructions.split(8)) for row in pair]
    path = run.sample_path(state.step)
    save_png(
        path, image_grid(rows, columns=min(8, len(images))), scale=max(1, 64 // preview.image_size)
    )
    return str(path)


def last_losses(run: Run) -> dict[str, float]:
    """The newest logged value of every loss, by name."""
    table = run.metrics("train")
    return (
        {}
        if table.empty
        else {key: float(value) for key, value in table.iloc[-1].items() if key != "split"}
    )


def check_images(config: TokenizerTraining, images: ImageSource) -> None:
    """One line when source and config do not belong together."""
    if images.image_size != config.model.image_size:
        raise ValueError(
            f"the tokenizer takes images of {config.model.image_size} px, the source gives {images.image_size} px"
        )
    if config.images and images.fingerprint != config.images:
        raise ValueError(
            f"the run was configured for images {config.images}, but these are {images.fingerprint}"
        )
