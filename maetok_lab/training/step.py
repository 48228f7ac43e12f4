"""One step of a tokenizer's training: draw, forward, backward, update; and what is carried from step to step."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import nn

from maetok_lab.data.images import ImageSource
from maetok_lab.device import autocast
from maetok_lab.rng import generator, seed_step
from maetok_lab.tokenizer.losses import loss_weights, total_loss
from maetok_lab.tokenizer.masking import draw_mask
from maetok_lab.tokenizer.text import caption_tokens
from maetok_lab.training import common
from maetok_lab.training.adversary import Adversary
from maetok_lab.training.batches import TrainingBatch
from maetok_lab.training.common import Share
from maetok_lab.training.objective import Objective, TokenizerTraining


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
        """What a checkpoint holds, by group."""
        groups = {
            "model": self.objective.tokenizer.state_dict(),
            "ema": self.ema.module.state_dict(),
        }
        if self.objective.auxiliary:
            groups["auxiliary"] = self.objective.auxiliary.state_dict()
        if self.adversary:
            groups["discriminator"] = self.adversary.tensors()
            groups["discriminator_optimizer"] = common.optimizer_tensors(self.adversary.optimizers)
        return groups | {"optimizer": common.optimizer_tensors(self.optimizers)}


def training_step(
    config: TokenizerTraining,
    state: State,
    forward: nn.Module,
    engine: Accelerator,
    picked: TrainingBatch,
    captions: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """One optimizer step on this process's share of the global batch of `state.step`, in `config.accumulate` parts.

    Returns the loss terms.
    """
    share = Share(engine, state.step, config.batch_size)
    batch, mask, noise = draw_batch(config, share, picked.images)
    reconstructions = torch.empty_like(batch) if state.adversary else None
    seed_step(config.seed, state.step)
    parts = []
    for part in share.parts(config.accumulate):
        mine = [
            None if whole is None else whole[part.local] for whole in (batch, mask, noise, captions)
        ]
        last = (
            len(parts) + 1 == config.accumulate
        )  # gradients of several processes meet once a step
        with contextlib.nullcontext() if last else engine.no_sync(forward):
            terms, rebuilt = backward_part(config, state, forward, part, mine)
        parts.append(terms)
        if state.adversary:
            reconstructions[part.local] = rebuilt.detach()
    terms = common.mean_terms(parts)
    factor = common.learning_rate_factor(config.optimizer, state.step, config.num_steps)
    update(config, state, terms, factor)
    if state.adversary:
        learnt = state.adversary.learn(
            batch, reconstructions, share, factor=factor, parts=config.accumulate
        )
        terms = state.adversary.report(terms | learnt)
    return terms


def backward_part(
    config: TokenizerTraining,
    state: State,
    forward: nn.Module,
    part: Share,
    inputs: Sequence[torch.Tensor | None],
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Add the gradients of one part of a step's batch; `inputs` are those of `Objective.forward`.

    -> the part's named terms, reconstructions (b, 3, H, W)
    """
    with autocast(part.engine.device, config.precision):
        terms, reconstructions = forward(*inputs)
    progress = part.step / config.num_steps
    weights = loss_weights(
        config.losses, {a.target: a.weight for a in config.targets}, progress=progress
    )
    logged = {}
    if state.adversary:
        reconstruction_loss = total_loss(
            {name: terms[name] for name in ("pixel", "perceptual") if name in terms}, weights
        )
        last_layer = state.objective.tokenizer.to_pixels.weight
        logged = state.adversary.oppose(reconstructions, reconstruction_loss, last_layer, part)
        if logged:
            terms["adversarial"] = logged["adversarial"]
            weights["adversarial"] *= logged["adaptive_weight"]
    part.engine.backward(total_loss(terms, weights) / config.accumulate)
    return terms | logged, reconstructions


def caption_batch(
    config: TokenizerTraining, images: ImageSource, indices: torch.Tensor
) -> torch.Tensor | None:
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
        config.masking,
        config.batch_size,
        config.model.grid,
        progress=step / config.num_steps,
        generator=generator(config.seed, "mask", step),
    )
    noise = draw_latent_noise(config, step, device)
    return (
        images.to(device, non_blocking=True),
        None if mask is None else mask[rows].to(device, non_blocking=True),
        None if noise is None else noise[rows],
    )


def update(
    config: TokenizerTraining, state: State, terms: Mapping[str, torch.Tensor], factor: float
) -> None:
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


def draw_latent_noise(
    config: TokenizerTraining, step: int, device: torch.device
) -> torch.Tensor | None:
    """Noise for the global batch: N(0, 1) for a posterior, times U(0, 1) a sample for `latent_noise`. -> (B, N, C) or None"""
    if config.trains == "all" and config.model.bottleneck == "ae":
        return None
    draw = generator(config.seed, "latent-noise", step, device=device)
    shape = (config.batch_size, config.model.num_latent_tokens, config.model.latent_dim)
    noise = torch.randn(shape, generator=draw, device=device)
    return (
        noise
        if config.trains == "all"
        else noise * torch.rand(len(noise), 1, 1, generator=draw, device=device)
    )
