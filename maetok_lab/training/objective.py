"""What a tokenizer's training minimises: a batch of images to named loss terms."""

import torch
from torch import nn

from maetok_lab.tokenizer.alignment import make_head
from maetok_lab.tokenizer.auxiliary import AuxiliaryDecoder, compute_targets, share_networks
from maetok_lab.tokenizer.losses import pixel_loss
from maetok_lab.tokenizer.model import Tokenizer
from maetok_lab.tokenizer.perceptual import make_perceptual
from maetok_lab.tokenizer.perturbation import Draws, Perturbation
from maetok_lab.tokenizer.targets import Captions
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.task import Terms


class Objective(nn.Module):
    """Tokenizer and auxiliary decoders as one module that turns a batch into named loss terms."""

    # What makes latents, and stands still in decoder tuning: these names' tensors.
    makes_latents = ("encoder.", "to_latents.", "bottleneck.")

    def __init__(self, config: TokenizerTraining):
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer(config.model)
        self.auxiliary = nn.ModuleDict()
        for target in config.targets:
            self.auxiliary[target.module_name] = make_head(target, config.model)
        share_networks(self.auxiliary)
        self.perturbation = Perturbation(config.perturbation, config.model.latent_dim)
        self.perceptual = make_perceptual(config.losses)
        if config.trains == "decoder":
            for name, parameter in self.tokenizer.named_parameters():
                parameter.requires_grad_(not name.startswith(self.makes_latents))

    def train(self, mode: bool = True) -> "Objective":
        """Train mode, but for an encoder that is frozen: it must give the latents it will give."""
        super().train(mode)
        if self.config.trains == "decoder":
            self.tokenizer.encoder.eval()
        return self

    def forward(
        self,
        images: torch.Tensor,
        mask: torch.Tensor | None,
        noise: torch.Tensor | None,
        captions: Captions = None,
        latents: torch.Tensor | None = None,
        perturbation: Draws | None = None,
    ) -> tuple[Terms, torch.Tensor, torch.Tensor | None]:
        """Encode what is not hidden, decode all of it, and compare.

        images (B, 3, H, W), mask (B, patches) True = hidden, noise (B, N, C), captions (B, 77)
        for a target of text, latents (B, N, C) that are not trained -> named terms (),
        reconstructions (B, 3, H, W), and decoded mixtures where they are drawn
        """
        config = self.config
        encoding_terms: Terms = {}
        if latents is None:
            posterior = self.tokenizer.posterior(images, mask=mask)
            encoding_terms = self.tokenizer.bottleneck.losses(posterior)
            latents = posterior.sample(noise)

        # Decoders see latents as they are disturbed; a mixture has no image to be compared with.
        size = tuple(images.shape[-2:])
        disturbed = self.perturbation(latents, perturbation or {})
        reconstructions = self.tokenizer.decode(disturbed, size)
        mixed = self.perturbation.mixtures(latents, perturbation or {})
        mixtures = None if mixed is None else self.tokenizer.decode(mixed, size)

        # The reconstruction is compared on all patches, an auxiliary prediction on hidden ones.
        terms = {"pixel": pixel_loss(config.losses, reconstructions, images)}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(reconstructions, images).mean()
        terms |= encoding_terms
        targets = compute_targets(self.auxiliary, images, captions)
        for name, decoder in self.auxiliary.items():
            # what aligns latents looks at them as they are
            predicted_from = disturbed if isinstance(decoder, AuxiliaryDecoder) else latents
            loss = decoder.loss(predicted_from, targets[name], mask)
            terms[f"auxiliary/{decoder.config.target}"] = loss
        return terms, reconstructions, mixtures
