"""What decoder tuning takes from the runs before it: a tokenizer's weights, a diffusion model."""

import torch

from maetok_lab.data.latents import load_latent_space
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.generation.regeneration import regenerate
from maetok_lab.runs import Run
from maetok_lab.training.recipe import RegenerationConfig, TokenizerTraining


class Regenerator:
    """A finished diffusion model that makes latents anew, as `RegenerationConfig` says."""

    def __init__(self, config: RegenerationConfig, run: Run | None, device: torch.device):
        if run is None or run.fingerprint != config.diffusion:
            raise ValueError(
                f"this decoder tuning needs the diffusion run with fingerprint {config.diffusion}, "
                f"not {_named(run)}"
            )
        self.config = config
        self.model = load_diffusion(run.folder).to(device).eval()
        # what the model learnt is normalised by its cache
        parents = run.provenance["parents"]
        if not parents:
            raise ValueError(
                f"diffusion run {run.name} names no cache of latents, so nothing says how they are "
                "normalised: train it with Run.open(..., parents=[latents.run])"
            )
        cache = parents[0]["run"]
        self.space = load_latent_space(run.folder.parent / cache).to(device)

    def __call__(
        self, latents: torch.Tensor, labels: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Raw latents (B, N, C), labels (B,), noise (B, N, C) -> raw latents"""
        options = {"start": self.config.start, "num_steps": self.config.num_steps}
        noise = noise.to(latents.device)
        return regenerate(self.model, self.space, latents, labels, noise, **options).float()


def parent_weights(config: TokenizerTraining, parent: Run | None) -> dict[str, torch.Tensor]:
    """The averaged weights that decoder tuning starts from."""
    if parent is None or parent.fingerprint != config.parent:
        raise ValueError(
            f"decoder tuning needs the run with fingerprint {config.parent} as its parent, "
            f"not {_named(parent)}"
        )
    checkpoint = parent.load_checkpoint(groups=["ema"])
    if checkpoint is None:
        raise ValueError(
            f"decoder tuning starts from run {parent.name}, which has no checkpoint yet"
        )
    return checkpoint.tensors["ema"]


def _named(run: Run | None) -> str:
    """What came, for an error."""
    return "none" if run is None else f"run {run.name} with {run.fingerprint}"
