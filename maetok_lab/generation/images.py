"""Images out of models, in batches: the same whatever the batch size and however many processes share the work."""

from collections.abc import Callable, Iterator

import torch

from maetok_lab.data.latents import LatentSpace
from maetok_lab.device import Precision, autocast
from maetok_lab.diffusion.cost import SamplingProgress, sampling_cost
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.sampling import draw_noise, sample
from maetok_lab.identity import check_owner
from maetok_lab.inference import device_of, eval_mode
from maetok_lab.processes import share_rows
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.rng import seeds_for


@torch.inference_mode()
def reconstruct(
    tokenizer: AnyTokenizer, images: torch.Tensor, *, batch_size: int = 64
) -> torch.Tensor:
    """Encode and decode, unmasked, in float32 on the tokenizer's device. (n, 3, H, W) -> (n, 3, H, W) on the CPU"""
    device = device_of(tokenizer)
    with eval_mode(tokenizer):
        done = [
            tokenizer.decode(tokenizer.encode(batch.to(device))).cpu()
            for batch in images.split(batch_size)
        ]
    return torch.cat(done)


def generate(
    model: DiffusionTransformer,
    tokenizer: AnyTokenizer,
    space: LatentSpace,
    labels: torch.Tensor,
    *,
    seed: int = 0,
    batch_size: int = 256,
    precision: Precision = "fp32",
    write: Callable[[str], None] | None = None,
    **sampling,
) -> torch.Tensor:
    """Sample one image a label: noise -> latents -> images (n, 3, H, W) in [-1, 1] on the CPU; image k has its own seed.

    `sampling` goes to diffusion.sampling.sample. `write` (such as print) is told the cost before the start, and images/s
    and the time left after the first batch. In a `torch.distributed` group each process draws its share, and all get all
    images. Raises ValueError when `space` or the model belongs to another tokenizer.
    """
    settings = {
        "seed": seed,
        "batch_size": batch_size,
        "precision": precision,
        "write": write,
        **sampling,
    }

    def work(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "images": torch.cat(
                [images for _, images in draw(model, tokenizer, space, labels, rows, **settings)]
            )
        }

    return share_rows(len(labels), work)["images"]


@torch.inference_mode()
def draw(
    model: DiffusionTransformer,
    tokenizer: AnyTokenizer,
    space: LatentSpace,
    labels: torch.Tensor,
    rows: torch.Tensor,
    *,
    seed: int,
    batch_size: int,
    precision: Precision,
    write: Callable[[str], None] | None = None,
    **sampling,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images number `rows` (r,) of those that `generate` makes for `labels` (n,), in this process: (rows, images) a batch."""
    owners = {
        "latent space": space.tokenizer,
        "diffusion model": model.tokenizer_fingerprint or space.tokenizer,
    }
    for subject, owner in owners.items():
        check_owner(tokenizer, owner, subject)
    progress = (
        SamplingProgress(sampling_cost(model, len(rows), **sampling), write=write)
        if write
        else None
    )
    device, done = device_of(model), 0
    for part in rows.split(batch_size) if len(rows) else ():
        seeds = [seeds_for(seed, 1, start=row)[0] for row in part.tolist()]
        noise = draw_noise(seeds, model.num_tokens, model.latent_dim, device=device)
        with eval_mode(model, tokenizer), autocast(device, precision):
            latents = sample(model, noise, labels[part].to(device), seeds=seeds, **sampling)
            images = (
                tokenizer.decode(space.denormalise(latents).to(device_of(tokenizer)))
                .float()
                .clamp(-1, 1)
            )
        done += len(part)
        if progress:
            progress.update(done)
        yield part, images.cpu()
