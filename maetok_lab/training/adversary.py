"""The discriminator beside a tokenizer's training: its part of a step, a log and a checkpoint."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import mse_loss

from maetok_lab.device import Precision, autocast
from maetok_lab.rng import generator, seed_step
from maetok_lab.runs import Checkpoint
from maetok_lab.tokenizer.discriminators import (
    DIFFAUG,
    STRONG,
    LecamEma,
    adaptive_weight,
    diff_augment,
    hinge_d,
    hinge_g,
    make_discriminator,
)
from maetok_lab.tokenizer.losses import LossConfig, discriminator_weights, total_loss
from maetok_lab.tokenizer.model import TokenizerConfig
from maetok_lab.training.loop import join_parts
from maetok_lab.training.optim import (
    Guard,
    OptimizerConfig,
    load_optimizer_tensors,
    make_optimizers,
    moved_parameters,
    optimizer_tensors,
    set_learning_rate,
)
from maetok_lab.training.order import Share
from maetok_lab.training.task import Terms

TERMS = (  # what every log record of an adversarial training has; 0 as long as it is not computed
    "adversarial",
    "adaptive_weight",
    "discriminator",
    "lecam",
    "consistency",
    "discriminator/accuracy_real",
    "discriminator/accuracy_fake",
    "discriminator/skipped",
)


class OpposedTraining(Protocol):
    """What an adversary reads of a tokenizer's training config."""

    model: TokenizerConfig
    losses: LossConfig
    optimizer: OptimizerConfig
    precision: Precision
    seed: int


class Adversary:
    """A discriminator with its optimizer, LeCAM averages and guard.

    Every draw comes from (seed, stream, step).
    """

    def __init__(self, training: OpposedTraining, device: torch.device):
        self.config = training.losses.adversarial
        self.seed = training.seed
        self.clip = training.optimizer.clip
        self.autocast = autocast(device, training.precision)
        # -1 made the tokenizer: its first weights are the same with and without an adversary.
        seed_step(training.seed, -2)
        discriminator = make_discriminator(self.config, image_size=training.model.image_size)
        self.discriminator = discriminator.to(device)
        self.lecam = LecamEma(self.config.lecam_decay).to(device)
        # No weight decay: in a layer with spectral norm it changes only the effective rate.
        optimizer = OptimizerConfig(
            learning_rate=self.config.learning_rate, betas=self.config.betas, weight_decay=0.0
        )
        optimizers = make_optimizers(optimizer, {"discriminator": self.discriminator})
        self.optimizers = {"discriminator": optimizers["adamw"]}
        self.parameters = moved_parameters(self.optimizers.values())
        self.guard = Guard()

    def trains(self, step: int) -> bool:
        """Whether the discriminator is trained at `step` (0 is the first)."""
        return step >= self.config.trains_from

    def counts(self, step: int) -> bool:
        """Whether the tokenizer is trained against it at `step`."""
        return step >= self.config.counts_from

    def groups(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """For a checkpoint: the trained part (DINO is frozen), LeCAM's averages, the optimizer."""
        return {
            "discriminator": self._saved().state_dict(),
            "discriminator_optimizer": optimizer_tensors(self.optimizers),
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """The inverse of `groups`, and the number of steps that were skipped."""
        self._saved().load_state_dict(checkpoint.tensors["discriminator"])
        load_optimizer_tensors(self.optimizers, checkpoint.tensors["discriminator_optimizer"])
        self.guard.skipped = checkpoint.state["discriminator_skipped"]

    def _saved(self) -> nn.Module:
        return nn.ModuleDict({"trained": self.discriminator.trained, "lecam": self.lecam})

    def oppose(
        self,
        reconstructions: torch.Tensor,
        reconstruction_loss: torch.Tensor,
        last_layer: torch.Tensor,
        share: Share,
        *,
        mixtures: torch.Tensor | None = None,
    ) -> Terms:
        """The tokenizer's adversarial term, and the factor on its weight; {} before `counts_from`.

        Its gradient reaches the reconstructions (B, 3, H, W), and `mixtures` of as many, not the
        discriminator, which stays as it is. An adaptive factor balances it with
        `reconstruction_loss` at the decoder's `last_layer`; else it is 1. -> two named ()
        """
        if not self.counts(share.step):
            return {}
        self.discriminator.eval()
        with held_still(self.discriminator.trained), self.autocast:
            views = [self._view(reconstructions, "generator", share)]
            if mixtures is not None:
                views.append(self._view(mixtures, "generator/mixed", share))
            adversarial = hinge_g(self.discriminator(torch.cat(views)))
        if self.config.adaptive:
            factor = adaptive_weight(
                reconstruction_loss, adversarial, last_layer, average=share.mean
            )
        else:
            factor = torch.ones_like(adversarial.detach())
        return {"adversarial": adversarial, "adaptive_weight": factor}

    def learn(
        self,
        images: torch.Tensor,
        decoded: Mapping[str, torch.Tensor],
        share: Share,
        *,
        factor: float,
        parts: int = 1,
    ) -> Terms:
        """One step at `factor` of the learning rate, in `parts`; {} before `trains_from`.

        images (B, 3, H, W), this process's rows, and as many "fake" (reconstructions) and perhaps
        "mixed" ones -> named terms, each ()
        """
        if not self.trains(share.step):
            return {}
        weights = discriminator_weights(self.config)
        parts_terms = []
        for part in share.parts(parts):
            kinds = {"real": images[part.local]}
            for name, pictures in decoded.items():
                kinds[name] = pictures[part.local].detach()
            terms, real, fake = self._losses(kinds, part)
            share.engine.backward(total_loss(terms, weights) / parts)
            terms["discriminator/accuracy_real"] = (real > 0).float().mean()
            terms["discriminator/accuracy_fake"] = (fake < 0).float().mean()
            terms["real"] = real.mean()
            terms["fake"] = fake.mean()
            parts_terms.append(terms)
        terms = join_parts(parts_terms)
        logits = share.mean(torch.stack([terms.pop("real"), terms.pop("fake")]))

        # No DDP around it, as it is called three times a step: gradients meet here.
        average_gradients(self.parameters, share)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        set_learning_rate(self.optimizers, factor)
        bad = self.guard.step(self.optimizers.values(), grad_norm)
        averages = torch.stack([self.lecam.real, self.lecam.fake])
        self.lecam.update(*torch.where(bad, averages, logits))
        for parameter in self.parameters:
            parameter.grad = None
        return terms

    def _losses(
        self, kinds: Mapping[str, torch.Tensor], share: Share
    ) -> tuple[Terms, torch.Tensor, torch.Tensor]:
        """Its terms, and its logits of real and of all other images without their graph."""
        views = [self._view(batch, name, share) for name, batch in kinds.items()]
        if self.config.consistency_weight:
            for name, batch in kinds.items():
                views.append(self._view(batch, name, share, strong=True))
        # One pass for all views: spectral norms are those of one state of the weights.
        with self.autocast:
            logits = self.discriminator.train()(torch.cat(views))
        own = logits.chunk(len(views))
        real, *decoded = own[: len(kinds)]
        fake = torch.cat(decoded)
        strong = own[len(kinds) :]
        terms = {"discriminator": hinge_d(real, fake), "lecam": self.lecam(real, fake)}
        if strong:
            # one mean over both halves (release): half of the sum of their means
            terms["consistency"] = mse_loss(torch.cat(strong), torch.cat([real, fake]))
        return terms, real.detach(), fake.detach()

    def _view(
        self, images: torch.Tensor, name: str, share: Share, *, strong: bool = False
    ) -> torch.Tensor:
        """What it sees of images: augmented, and cropped where they are larger than it takes."""
        batch = (share.size, share.rows)
        if strong:
            draws = generator(self.seed, "adversary/strong", name, share.step)
            images = diff_augment(
                images, policy=STRONG, probability=1.0, generator=draws, batch=batch
            )
        elif self.config.diffaug:
            draws = generator(self.seed, "adversary/diffaug", name, share.step)
            images = diff_augment(
                images, policy=DIFFAUG, probability=0.5, generator=draws, batch=batch
            )
        size = self.discriminator.crop_size
        if size is None or min(images.shape[-2:]) <= size:
            return images
        # One crop for everything that is seen in a step: logits of the same place are compared.
        return half_crop(images, size, generator=generator(self.seed, "adversary/crop", share.step))

    def report(self, terms: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`terms` with every name of `TERMS`; what was not computed is 0."""
        zero = torch.zeros((), device=self.lecam.real.device)
        skipped = zero + self.guard.skipped
        return dict.fromkeys(TERMS, zero) | dict(terms) | {"discriminator/skipped": skipped}


def half_crop(images: torch.Tensor, size: int, *, generator: torch.Generator) -> torch.Tensor:
    """With probability 1/2 one random crop for the batch, else the images whole (the release).

    (B, 3, H, W) -> (B, 3, size, size) or as it was
    """
    crops, down, across = torch.rand(3, generator=generator).tolist()
    if crops >= 0.5:
        return images
    height, width = images.shape[-2:]
    top = int(down * (height - size + 1))
    left = int(across * (width - size + 1))
    return images[..., top : top + size, left : left + size]


@contextlib.contextmanager
def held_still(module: nn.Module) -> Iterator[None]:
    """Inside, no gradient for the parameters of `module`; what is before it still gets one."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def average_gradients(parameters: list[nn.Parameter], share: Share) -> None:
    """Replace gradients by their mean over processes, in one exchange."""
    if share.engine.num_processes == 1:
        return
    flat = share.mean(torch.cat([parameter.grad.flatten() for parameter in parameters]))
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, gradient in zip(parameters, flat.split(sizes)):
        parameter.grad.copy_(gradient.view_as(parameter))
