"""What a tokenizer's training minimises: its config, and the module that turns a batch into named loss terms."""

import dataclasses
from typing import Literal

import torch
from torch import nn

from maetok_lab.config import not_in_fingerprint
from maetok_lab.device import Precision
from maetok_lab.tokenizer.auxiliary import (
    AuxiliaryConfig,
    AuxiliaryDecoder,
    compute_targets,
    share_networks,
)
from maetok_lab.tokenizer.losses import LossConfig, pixel_loss
from maetok_lab.tokenizer.masking import MaskingConfig
from maetok_lab.tokenizer.model import Tokenizer, TokenizerConfig
from maetok_lab.tokenizer.perceptual import make_perceptual
from maetok_lab.tokenizer.targets import Captions
from maetok_lab.training.common import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    """Everything about one training of a tokenizer. `trains` "decoder" is the second stage: what makes latents is frozen.

    `images` and `parent` are fingerprints (of the image source, of the run whose weights the second stage starts from), so
    that a run is never continued with other data. Intervals are in steps. `crop` "scale" is the release's (see
    `readers.scale_crop`), "center" the paper's, which is the image source's own; `workers` processes decode what is not in
    memory. `latent_noise` (decoder tuning only, not in the paper, where it is 0) adds noise of up to this share of the
    latents' std, a different share for each image: the decoder then also takes latents that a diffusion model got a little
    wrong. A batch that does not fit into memory goes through in `accumulate` parts, whose gradients are added: the same step up
    to rounding, but that a discriminator's adaptive weight and the std for `latent_noise` are each part's own. `compile` lets
    torch compile the transformers, which takes minutes at the start.
    """

    model: TokenizerConfig
    crop: Literal["center", "scale"] = "center"
    masking: MaskingConfig = MaskingConfig()
    targets: tuple[AuxiliaryConfig, ...] = (AuxiliaryConfig(),)
    losses: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trains: Literal["all", "decoder"] = "all"
    latent_noise: float = 0.0
    num_steps: int
    batch_size: int
    ema_decay: float = 0.9999
    precision: Precision = "bf16"
    seed: int = 0
    images: str = ""
    parent: str | None = None
    workers: int = not_in_fingerprint(4)
    accumulate: int = not_in_fingerprint(1)
    compile: bool = not_in_fingerprint(False)
    log_every: int = not_in_fingerprint(50)
    save_every: int = not_in_fingerprint(500)
    picture_every: int = not_in_fingerprint(500)

    def __post_init__(self):
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_steps and batch_size must be at least 1, not {self.num_steps} and {self.batch_size}"
            )
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(
                f"a batch of {self.batch_size} cannot be split into accumulate={self.accumulate} equal parts"
            )
        if self.workers < 0:
            raise ValueError(
                f"workers must be 0 (decode in this process) or more, not {self.workers}"
            )
        names = [target.target for target in self.targets]
        if len(set(names)) < len(names):
            raise ValueError(f"each target can be asked for once, not {names}")
        if self.trains == "decoder" and (self.targets or self.parent is None):
            came = f"parent {self.parent!r} and targets {names}"
            raise ValueError(
                f"decoder tuning needs a parent run and has no auxiliary targets, not {came}"
            )
        if self.latent_noise and self.trains == "all":
            raise ValueError(
                "latent_noise is for decoder tuning: there the latents no longer change"
            )
        adversarial = self.losses.adversarial
        if adversarial and adversarial.counts_from >= self.num_steps:
            raise ValueError(
                f"the discriminator counts from step {adversarial.counts_from}, after the last of {self.num_steps}; "
                "lower losses.adversarial.counts_from, or set losses.adversarial to None"
            )


class Objective(nn.Module):
    """Tokenizer and auxiliary decoders as one module that turns a batch into named loss terms (so that DDP sees one forward)."""

    frozen = ("encoder.", "to_latents.")  # what makes latents, and stands still in decoder tuning

    def __init__(self, config: TokenizerTraining):
        super().__init__()
        self.config = config
        model = config.model
        self.tokenizer = Tokenizer(model)
        self.auxiliary = nn.ModuleDict(
            {a.module_name: AuxiliaryDecoder(a, model) for a in config.targets}
        )
        share_networks(self.auxiliary)
        self.perceptual = make_perceptual(config.losses)
        if config.trains == "decoder":
            for name, parameter in self.tokenizer.named_parameters():
                parameter.requires_grad_(not name.startswith(self.frozen))

    def train(self, mode: bool = True) -> "Objective":
        super().train(mode)
        if self.config.trains == "decoder":
            self.tokenizer.encoder.eval()
        return self

    def compile_towers(self) -> None:
        """Let torch compile every transformer in place: names in checkpoints stay as they are."""
        auxiliary = (decoder.decoder for decoder in self.auxiliary.values())
        for tower in (self.tokenizer.encoder, self.tokenizer.decoder, *auxiliary):
            tower.compile()

    def forward(
        self,
        images: torch.Tensor,
        mask: torch.Tensor | None,
        noise: torch.Tensor | None,
        captions: Captions = None,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """images (B, 3, H, W), mask (B, patches), posterior noise (B, N, C), captions where a target asks for them
        -> named loss terms, reconstructions (B, 3, H, W)
        """
        with torch.set_grad_enabled(self.config.trains == "all"):
            posterior = self.tokenizer.posterior(images, mask=mask)
        latents = posterior.sample(noise) if self.config.trains == "all" else posterior.mean
        if self.config.latent_noise and self.training:
            latents = latents + self.config.latent_noise * latents.std((0, 1)) * noise
        reconstructions = self.tokenizer.decode(latents, tuple(images.shape[-2:]))
        terms = {"pixel": pixel_loss(self.config.losses, reconstructions, images)}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(reconstructions, images).mean()
        if posterior.log_variance is not None and self.config.trains == "all":
            terms["kl"] = posterior.kl()
        targets = compute_targets(self.auxiliary, images, captions)
        for name, decoder in self.auxiliary.items():
            terms[f"auxiliary/{decoder.config.target}"] = decoder.loss(latents, targets[name], mask)
        return terms, reconstructions
