"""Train a tokenizer (paper section 3): masked autoencoding with auxiliary targets, then tuning of the pixel decoder.

    for record in train_tokenizer(config, images, run): ...
    for record in finetune_decoder(decoder_tuning(config, parent=run), images, tuned_run, parent=run): ...
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from maetok_lab.config import override
from maetok_lab.data.images import ImageSource
from maetok_lab.device import autocast
from maetok_lab.pictures import image_grid, save_png, to_uint8
from maetok_lab.rng import generator, seed_step
from maetok_lab.runs import Run
from maetok_lab.tokenizer.losses import loss_weights, total_loss
from maetok_lab.tokenizer.masking import MaskingConfig, draw_mask
from maetok_lab.tokenizer.text import caption_tokens
from maetok_lab.training import common
from maetok_lab.training.adversary import Adversary
from maetok_lab.training.batches import TrainingBatch, training_batches
from maetok_lab.training.common import Share, StepRecord
from maetok_lab.training.objective import Objective, TokenizerTraining


def decoder_tuning(config: TokenizerTraining, *, parent: Run, **changes: Any) -> TokenizerTraining:
    """The second stage of `config` (section 3.3): decoder only, no targets, mask ratio from 0.6 linearly to 0.

    `changes` are further overrides with dots as double underscores: `num_steps=600, optimizer__learning_rate=1e-4`.
    """
    stage = {"trains": "decoder", "targets": (), "parent": parent.fingerprint}
    stage["masking"] = MaskingConfig(ratio="linear", low=0.0, high=0.6)
    return override(config, stage | {name.replace("__", "."): value for name, value in changes.items()})


@dataclasses.dataclass
class State:
    """What a training carries from step to step, and what a checkpoint holds.

    `frozen`: what decoder tuning must leave as its parent has it, by name.
    """

    objective: Objective
    ema: common.Ema
    optimizers: dict[str, torch.optim.Optimizer]
    guard: common.Guard
    adversary: Adversary | None = None
    step: int = 0
    frozen: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    def tensors(self) -> dict[str, Mapping[str, torch.Tensor]]:
        groups = {"model": self.objective.tokenizer.state_dict(), "ema": self.ema.module.state_dict()}
        if self.objective.auxiliary:
            groups["auxiliary"] = self.objective.auxiliary.state_dict()
        if self.adversary:
            groups["discriminator"] = self.adversary.tensors()
            groups["discriminator_optimizer"] = common.optimizer_tensors(self.adversary.optimizers)
        return groups | {"optimizer": common.optimizer_tensors(self.optimizers)}


def train_tokenizer(
    config: TokenizerTraining, images: ImageSource, run: Run, *, preview: ImageSource | None = None, cpu: bool = False
) -> Iterator[StepRecord]:
    """Train, or continue, into `run`; yields one record a step. A finished run yields nothing.

    `preview` images (at most 16 of them) are reconstructed into runs/NAME/samples at `picture_every` and scored ("val" lines).
    Of several processes only the first writes; the others may hold a `Run` that only reads.
    Raises NonFiniteTraining after several steps without a finite gradient, ValueError for sizes that do not fit.
    """
    if config.trains == "decoder":
        raise ValueError("this config tunes a decoder: finetune_decoder trains it, from its parent run")
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
        raise ValueError("finetune_decoder needs the config of a second stage; make it with decoder_tuning")
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
    engine = common.make_engine(config.batch_size, cpu=cpu, all_weights_used=False)
    writes = engine.is_main_process
    state = start(config, run, parent, engine.device)
    if writes:
        run.rewind_metrics(state.step)
    forward = engine.prepare_model(state.objective)
    size = config.batch_size
    rows = Share(engine, state.step, size).rows
    for picked in training_batches(images, config, start_step=state.step, rows=rows):
        terms = training_step(config, state, forward, engine, picked, caption_batch(config, images, picked.indices))
        step = state.step = state.step + 1
        last = step == config.num_steps
        losses = picture = None
        if step % config.log_every == 0 or last:
            losses = {name: engine.reduce(value.detach(), "mean").item() for name, value in terms.items()}
            if writes:
                run.log({"step": step, "images": step * size, "split": "train", **losses, "skipped": state.guard.skipped})
        if writes and preview is not None and (step % config.picture_every == 0 or last):
            picture = write_preview(config, state, preview, run, engine.device)
        if writes and (step % config.save_every == 0 or last):
            save(state, run)
        yield StepRecord(step, config.num_steps, step * size, losses, picture)
    if writes:
        run.finish({"steps": state.step, "images": state.step * size, "skipped": state.guard.skipped, **last_losses(run)})


def start(config: TokenizerTraining, run: Run, parent: Run | None, device: torch.device) -> State:
    """Fresh weights (or the parent's, for decoder tuning), or the state of the run's newest checkpoint."""
    seed_step(config.seed, -1)
    objective, frozen = Objective(config).to(device), {}
    if config.trains == "decoder":
        if parent is None or parent.fingerprint != config.parent:
            raise ValueError(f"decoder tuning needs the run with fingerprint {config.parent} as its parent")
        trained = parent.load_checkpoint(groups=["ema"])
        if trained is None:
            raise ValueError(f"decoder tuning starts from run {parent.name}, which has no checkpoint yet")
        objective.tokenizer.load_state_dict(trained.tensors["ema"])
        frozen = {name: value for name, value in trained.tensors["ema"].items() if name.startswith(objective.frozen)}
    optimizers = common.make_optimizers(config.optimizer, {"tokenizer": objective.tokenizer, "auxiliary": objective.auxiliary})
    ema = common.Ema(objective.tokenizer, config.ema_decay)
    state = State(objective, ema, optimizers, common.Guard(), frozen=frozen)
    if config.losses.adversarial:
        state.adversary = Adversary(
            config.losses.adversarial, config.optimizer, image_size=config.model.image_size, precision=config.precision,
            seed=config.seed, device=device,
        )  # fmt: skip
    checkpoint = run.load_checkpoint()
    if checkpoint:
        objective.tokenizer.load_state_dict(checkpoint.tensors["model"])
        objective.auxiliary.load_state_dict(checkpoint.tensors.get("auxiliary", {}))
        state.ema.module.load_state_dict(checkpoint.tensors["ema"])
        common.load_optimizer_tensors(optimizers, checkpoint.tensors["optimizer"])
        state.step, state.guard.skipped = checkpoint.step, checkpoint.state["skipped"]
        if state.adversary:
            state.adversary.load(checkpoint.tensors["discriminator"], checkpoint.tensors["discriminator_optimizer"])
            state.adversary.guard.skipped = checkpoint.state["discriminator_skipped"]
    objective.train()
    return state


def training_step(
    config: TokenizerTraining,
    state: State,
    forward: nn.Module,
    engine: Accelerator,
    picked: TrainingBatch,
    captions: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """One optimizer step on this process's share of the global batch of `state.step`; returns the loss terms."""
    step, share = state.step, Share(engine, state.step, config.batch_size)
    batch, mask, noise = draw_batch(config, share, picked.images)
    seed_step(config.seed, step)
    with autocast(engine.device, config.precision):
        terms, reconstructions = forward(batch, mask, noise, captions)
    weights = loss_weights(config.losses, {a.target: a.weight for a in config.targets}, progress=step / config.num_steps)
    adversary, logged = state.adversary, {}
    if adversary:
        reconstruction_loss = total_loss({name: terms[name] for name in ("pixel", "perceptual") if name in terms}, weights)
        last_layer = state.objective.tokenizer.to_pixels.weight
        logged = adversary.oppose(reconstructions, reconstruction_loss, last_layer, share)
        if logged:
            terms["adversarial"] = logged["adversarial"]
            weights["adversarial"] *= logged["adaptive_weight"]
    engine.backward(total_loss(terms, weights))
    factor = common.learning_rate_factor(config.optimizer, step, config.num_steps)
    update(config, state, terms, factor)
    if adversary:
        terms = adversary.report(terms | logged | adversary.learn(batch, reconstructions, share, factor=factor))
    return terms


def caption_batch(config: TokenizerTraining, images: ImageSource, indices: torch.Tensor) -> torch.Tensor | None:
    """The tokens of these images' captions, (B, 77); None when no target asks for them."""
    if not any(target.target == "text" for target in config.targets):
        return None
    return caption_tokens([images.captions[i] for i in indices.tolist()])


def draw_batch(
    config: TokenizerTraining, share: Share, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """This process's rows of a step: images (B, 3, H, W), mask (B, patches) and noise (B, N, C), each where it is computed."""
    step, rows, device = share.step, share.rows, share.engine.device
    mask = draw_mask(
        config.masking, config.batch_size, config.model.grid, progress=step / config.num_steps,
        generator=generator(config.seed, "mask", step),
    )  # fmt: skip
    noise = draw_latent_noise(config, step, device)
    return (
        images.to(device, non_blocking=True),
        None if mask is None else mask[rows].to(device, non_blocking=True),
        None if noise is None else noise[rows],
    )


def update(config: TokenizerTraining, state: State, terms: Mapping[str, torch.Tensor], factor: float) -> None:
    """One optimizer and EMA step from the gradients there are, at `factor` of the learning rates, unless they are not finite."""
    parameters = common.grad_parameters(state.optimizers.values())
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.clip)
    if state.guard.accepts(norm, state.step, terms):
        common.set_learning_rate(state.optimizers, factor)
        for optimizer in state.optimizers.values():
            optimizer.step()
        state.ema.update(state.step)
    for parameter in parameters:
        parameter.grad = None


def draw_latent_noise(config: TokenizerTraining, step: int, device: torch.device) -> torch.Tensor | None:
    """Noise for the global batch: N(0, 1) for a posterior, times U(0, 1) a sample for `latent_noise`. -> (B, N, C) or None"""
    if config.trains == "all" and config.model.bottleneck == "ae":
        return None
    draw = generator(config.seed, "latent-noise", step, device=device)
    shape = (config.batch_size, config.model.num_latent_tokens, config.model.latent_dim)
    noise = torch.randn(shape, generator=draw, device=device)
    return noise if config.trains == "all" else noise * torch.rand(len(noise), 1, 1, generator=draw, device=device)


def save(state: State, run: Run) -> None:
    """Write everything that continuing needs, unless something moved that decoder tuning must leave alone."""
    for weights in (state.objective.tokenizer, state.ema.module):
        now = weights.state_dict()
        moved = [name for name, value in state.frozen.items() if not torch.equal(now[name].cpu(), value)]
        if moved:
            raise RuntimeError(f"decoder tuning moved what makes the latents: {', '.join(moved[:5])} of {len(moved)} tensors")
    skipped = {"skipped": state.guard.skipped}
    if state.adversary:
        skipped["discriminator_skipped"] = state.adversary.guard.skipped
    run.save_checkpoint(state.step, state.tensors(), skipped)


@torch.inference_mode()
def write_preview(config: TokenizerTraining, state: State, preview: ImageSource, run: Run, device: torch.device) -> str:
    """Originals above the EMA's reconstructions, eight a row, into the run; logs their PSNR. -> the picture's path"""
    images, _ = preview.batch(torch.linspace(0, len(preview) - 1, min(16, len(preview))).long())
    with autocast(device, config.precision):
        reconstructions = state.ema.module(images.to(device)).cpu()
    error = (to_uint8(reconstructions).double() - to_uint8(images).double()).square().flatten(1).mean(1)
    psnr = (10 * torch.log10(255**2 / error.clamp(min=1e-12))).mean().item()
    run.log({"step": state.step, "images": state.step * config.batch_size, "split": "val", "psnr": psnr})
    rows = [row for pair in zip(images.split(8), reconstructions.split(8)) for row in pair]
    path = run.sample_path(state.step)
    save_png(path, image_grid(rows, columns=min(8, len(images))), scale=max(1, 64 // preview.image_size))
    return str(path)


def last_losses(run: Run) -> dict[str, float]:
    """The newest logged value of every loss, by name."""
    table = run.metrics("train")
    return {} if table.empty else {key: float(value) for key, value in table.iloc[-1].items() if key != "split"}


def check_images(config: TokenizerTraining, images: ImageSource) -> None:
    """One line when source and config do not belong together."""
    if images.image_size != config.model.image_size:
        raise ValueError(f"the tokenizer takes images of {config.model.image_size} px, the source gives {images.image_size} px")
    if config.images and images.fingerprint != config.images:
        raise ValueError(f"the run was configured for images {config.images}, but these are {images.fingerprint}")
