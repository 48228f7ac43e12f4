"""Images out of models, in batches: reconstructions and samples, the same whatever the batch size."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.cost import SamplingProgress, sampling_cost
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.sampling import draw_noise, sample
from maetok_lab.rng import seeds_for


class Autoencoder(Protocol):
    """What evaluation needs of a tokenizer."""

    fingerprint: str

    def encode(self, images: torch.Tensor) -> torch.Tensor: ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor: ...


@torch.inference_mode()
def reconstruct(tokenizer: Autoencoder, images: torch.Tensor, *, batch_size: int = 64) -> torch.Tensor:
    """Encode and decode, unmasked, in float32 on the tokenizer's device. (n, 3, H, W) -> (n, 3, H, W) on the CPU"""
    device = _device(tokenizer)
    with _evaluating(tokenizer):
        done = [tokenizer.decode(tokenizer.encode(batch.to(device))).cpu() for batch in images.split(batch_size)]
    return torch.cat(done)


@torch.inference_mode()
def generate(
    model: DiffusionTransformer,
    tokenizer: Autoencoder,
    space: LatentSpace,
    labels: torch.Tensor,
    *,
    seed: int = 0,
    batch_size: int = 256,
    write: Callable[[str], None] | None = None,
    **sampling,
) -> torch.Tensor:
    """Sample one image a label: noise -> latents -> images (n, 3, H, W) in [-1, 1] on the CPU; image k has its own seed.

    `sampling` goes to diffusion.sampling.sample. `write` (such as print) is told the cost before the start, and images/s
    and the time left after the first batch. Raises ValueError when `space` or the model belongs to another tokenizer.
    """
    owners = {"latent space": space.tokenizer, "diffusion model": model.tokenizer_fingerprint or space.tokenizer}
    for what, owner in owners.items():
        if owner != tokenizer.fingerprint:
            raise ValueError(f"the {what} belongs to tokenizer {owner}, not to {tokenizer.fingerprint}")
    progress = SamplingProgress(sampling_cost(model, len(labels), **sampling), write=write) if write else None
    device = _device(model)
    images = []
    for start in range(0, len(labels), batch_size):
        chosen = labels[start : start + batch_size].to(device)
        seeds = seeds_for(seed, len(chosen), start=start)
        noise = draw_noise(seeds, model.num_tokens, model.latent_dim, device=device)
        with _evaluating(model, tokenizer):
            latents = sample(model, noise, chosen, seeds=seeds, **sampling)
            images.append(tokenizer.decode(space.denormalise(latents).to(_device(tokenizer))).clamp(-1, 1).cpu())
        if progress:
            progress.update(start + len(chosen))
    return torch.cat(images)


def _device(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device


@contextlib.contextmanager
def _evaluating(*modules: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside, each module's own mode afterwards."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes):
            module.train(mode)
