"""The discriminator beside a tokenizer's training: what it adds to a step, to a log record and to a checkpoint."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.functional import mse_loss

from maetok_lab.device import Precision, autocast
from maetok_lab.rng import generator, seed_step
from maetok_lab.tokenizer.discriminators import (
    DIFFAUG,
    STRONG,
    AdversarialConfig,
    LecamEma,
    adaptive_weight,
    diff_augment,
    hinge_d,
    hinge_g,
    make_discriminator,
)
from maetok_lab.tokenizer.losses import discriminator_weights, total_loss
from maetok_lab.training import common
from maetok_lab.training.common import OptimizerConfig, Share

TERMS = (  # what every log record of an adversarial training has; 0 as long as it is not computed
    *("adversarial", "adaptive_weight", "discriminator", "lecam", "consistency"),
    *("discriminator/accuracy_real", "discriminator/accuracy_fake", "discriminator/skipped"),
)


class Adversary:
    """A discriminator with its optimizer, LeCAM averages and guard. Every draw comes from (seed, stream, step)."""

    def __init__(
        self,
        config: AdversarialConfig,
        optimizer: OptimizerConfig,
        *,
        image_size: int,
        precision: Precision,
        seed: int,
        device: torch.device,
    ):
        seed_step(
            seed, -2
        )  # -1 made the tokenizer: its first weights are the same with and without an adversary
        self.config, self.seed, self.precision, self.clip = config, seed, precision, optimizer.clip
        self.discriminator = make_discriminator(config, image_size=image_size).to(device)
        self.lecam = LecamEma(config.lecam_decay).to(device)
        # No weight decay: it changes nothing in a layer with spectral norm but the effective learning rate.
        settings = OptimizerConfig(
            learning_rate=config.learning_rate, betas=config.betas, weight_decay=0.0
        )
        trained = common.make_optimizers(settings, {"discriminator": self.discriminator})
        self.optimizers = {"discriminator": trained["adamw"]}
        self.guard = common.Guard()

    def trains(self, step: int) -> bool:
        """Whether the discriminator is trained at `step` (0 is the first)."""
        return step >= self.config.trains_from

    def counts(self, step: int) -> bool:
        """Whether the tokenizer is trained against it at `step`."""
        return step >= self.config.counts_from

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds beside the optimizer: the trained part (DINO itself is frozen) and LeCAM's averages."""
        return self._saved().state_dict()

    def load(
        self, tensors: Mapping[str, torch.Tensor], optimizer: Mapping[str, torch.Tensor]
    ) -> None:
        """The inverse of `tensors`, and of `common.optimizer_tensors(self.optimizers)`."""
        self._saved().load_state_dict(tensors)
        common.load_optimizer_tensors(self.optimizers, optimizer)

    def _saved(self) -> nn.Module:
        return nn.ModuleDict({"trained": self.discriminator.trained, "lecam": self.lecam})

    def oppose(
        self,
        reconstructions: torch.Tensor,
        reconstruction_loss: torch.Tensor,
        last_layer: torch.Tensor,
        share: Share,
    ) -> dict[str, torch.Tensor]:
        """The tokenizer's adversarial term and the factor on its weight (1 where it is not adaptive); {} before `counts_from`.

        The term's gradient reaches the reconstructions (B, 3, H, W), not the discriminator, whose state stays as it is.
        `reconstruction_loss` is what it is balanced with, at the decoder's `last_layer`. -> two named ()
        """
        if not self.counts(share.step):
            return {}
        self.discriminator.eval()
        with (
            held_still(self.discriminator.trained),
            autocast(reconstructions.device, self.precision),
        ):
            adversarial = hinge_g(
                self.discriminator(self._view(reconstructions, "generator", share))
            )
        if not self.config.adaptive:
            return {
                "adversarial": adversarial,
                "adaptive_weight": torch.ones_like(adversarial.detach()),
            }
        factor = adaptive_weight(reconstruction_loss, adversarial, last_layer, average=share.mean)
        return {"adversarial": adversarial, "adaptive_weight": factor}

    def learn(
        self,
        images: torch.Tensor,
        reconstructions: torch.Tensor,
        share: Share,
        *,
        factor: float,
        parts: int = 1,
    ) -> dict[str, torch.Tensor]:
        """One optimizer step of the discriminator at `factor` of its learning rate; {} before `trains_from`.

        images, reconstructions (B, 3, H, W), this process's rows, which go through in `parts` -> named terms, each ()
        """
        if not self.trains(share.step):
            return {}
        found = []
        for part in share.parts(parts):
            terms, real, fake = self._losses(
                images[part.local], reconstructions[part.local].detach(), part
            )
            share.engine.backward(total_loss(terms, discriminator_weights(self.config)) / parts)
            accuracies = {"real": (real > 0).float().mean(), "fake": (fake < 0).float().mean()}
            told = {f"discriminator/accuracy_{name}": value for name, value in accuracies.items()}
            found.append(terms | told | {"real": real.mean(), "fake": fake.mean()})
        means = common.mean_terms(found)
        logits = torch.stack([means.pop("real"), means.pop("fake")])
        parameters = common.grad_parameters(self.optimizers.values())
        average_gradients(parameters, share)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        if self.guard.accepts(norm, share.step, means):
            common.set_learning_rate(self.optimizers, factor)
            self.optimizers["discriminator"].step()
            self.lecam.update(*share.mean(logits))
        for parameter in parameters:
            parameter.grad = None
        return means

    def _losses(
        self, images: torch.Tensor, reconstructions: torch.Tensor, share: Share
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """The discriminator's terms, and its logits of real and of fake images without their graph."""
        kinds = {"real": images, "fake": reconstructions}
        views = [self._view(x, name, share) for name, x in kinds.items()]
        if self.config.consistency_weight:
            views += [self._view(x, name, share, strong=True) for name, x in kinds.items()]
        with autocast(images.device, self.precision):
            logits = self.discriminator.train()(torch.cat(views))
        real, fake, *strong = logits.chunk(len(views))
        terms = {"discriminator": hinge_d(real, fake), "lecam": self.lecam(real, fake)}
        if strong:
            terms["consistency"] = mse_loss(strong[0], real) + mse_loss(strong[1], fake)
        return terms, real.detach(), fake.detach()

    def _view(
        self, images: torch.Tensor, name: str, share: Share, *, strong: bool = False
    ) -> torch.Tensor:
        """What the discriminator sees of images: augmented, and cropped where they are larger than it takes."""
        batch = share.size, share.rows
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
    """With probability 1/2 one random crop for the batch, else the images whole (the release). -> (B, 3, size, size) or as is"""
    crops, down, across = torch.rand(3, generator=generator).tolist()
    if crops >= 0.5:
        return images
    top, left = (int(u * (side - size + 1)) for u, side in zip((down, across), images.shape[-2:]))
    return images[..., top : top + size, left : left + size]


@contextlib.contextmanager
def held_still(module: nn.Module) -> Iterator[None]:
    """No gradient for the parameters of `module` from what is computed inside; gradients still pass through it."""
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
    for parameter, gradient in zip(
        parameters, flat.split([parameter.numel() for parameter in parameters])
    ):
        parameter.grad.copy_(gradient.view_as(parameter))
