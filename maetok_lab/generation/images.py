"""Images out of models, whatever the batch size and however many processes share the work."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from maetok_lab.cores import each_part
from maetok_lab.data.latents import LatentSpace
from maetok_lab.device import Precision, autocast
from maetok_lab.diffusion.cost import SamplingProgress, sampling_cost
from maetok_lab.diffusion.graphs import Graphed
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.sampling import draw_noise, sample
from maetok_lab.identity import check_owner
from maetok_lab.inference import device_of, eval_mode, with_cast_weights
from maetok_lab.processes import share_rows
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.rng import seeds_for

GRAPHED_BATCH = 32  # images at most whose passes are recorded on a CUDA GPU


@torch.inference_mode()
def reconstruct(tokenizer: AnyTokenizer, images: Tensor, *, batch_size: int = 64) -> Tensor:
    """Encode and decode, unmasked, in float32 on the tokenizer's device.

    images (n, 3, H, W) -> (n, 3, H, W) on the CPU
    """
    # no autocast: PSNR and SSIM are compared at full precision
    device = device_of(tokenizer)

    def rebuilt(batch: Tensor) -> Tensor:
        """One batch, encoded and decoded."""
        return tokenizer.decode(tokenizer.encode(batch.to(device))).cpu()

    with eval_mode(tokenizer):
        return torch.cat(list(each_part(rebuilt, images.split(batch_size), device=device)))


def generate(
    model: DiffusionTransformer,
    tokenizer: AnyTokenizer,
    space: LatentSpace,
    labels: Tensor,
    *,
    seed: int = 0,
    batch_size: int = 256,
    precision: Precision = "fp32",
    write: Callable[[str], None] | None = None,
    **sampling,
) -> Tensor:
    """Sample one image a label: noise -> latents -> images (n, 3, H, W) in [-1, 1] on the CPU.

    `sampling` goes to diffusion.sampling.sample. `write` (such as print) gets the cost before the
    start, then images/s and the time left. Raises ValueError when `space` or the model belongs to
    another tokenizer.
    """

    # In a `torch.distributed` group each process draws its share, and all get all images.
    def work(rows: Tensor) -> dict[str, Tensor]:
        """The images of these rows."""
        batches = draw(
            model,
            tokenizer,
            space,
            labels,
            rows,
            seed=seed,
            batch_size=batch_size,
            precision=precision,
            write=write,
            **sampling,
        )
        return {"images": torch.cat([images for _, images in batches])}

    return share_rows(len(labels), work)["images"]


@torch.inference_mode()
def draw(
    model: DiffusionTransformer,
    tokenizer: AnyTokenizer,
    space: LatentSpace,
    labels: Tensor,
    rows: Tensor,
    *,
    seed: int,
    batch_size: int,
    precision: Precision,
    write: Callable[[str], None] | None = None,
    **sampling,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw the images `rows` (r,) of those that `generate` would give for `labels` (n,).

    Yields (rows, images on the CPU) for each batch. Nothing is shared with other processes.
    """
    check_owner(tokenizer, space.tokenizer, "latent space")
    for net in (model, sampling.get("weak_model")):
        # weights from elsewhere may not say whose latents they learnt
        if owner := getattr(net, "tokenizer_fingerprint", None):
            check_owner(tokenizer, owner, "diffusion model")
    if not len(rows):
        return
    # FLOPs are counted from the config, before anything runs
    progress = None
    if write:
        progress = SamplingProgress(sampling_cost(model, len(rows), **sampling), write=write)

    # the tokenizer may be on another device than the model
    device = device_of(model)
    model = with_cast_weights(model, precision)

    # with many rows a GPU is busy anyway, and every recording holds their activations
    velocity = Graphed(model) if batch_size <= GRAPHED_BATCH else model

    def drawn(batch: Tensor) -> Tensor:
        """The images of these rows, on the CPU."""
        # One seed an image: image k is the same in any batch and any process.
        seeds = [seeds_for(seed, 1, start=row)[0] for row in batch.tolist()]
        noise = draw_noise(seeds, model.num_tokens, model.latent_dim, device=device)
        with autocast(device, precision):
            drawing = {"seeds": seeds, "start": 1.0}  # noise, and nothing on its way from it
            latents = sample(velocity, noise, labels[batch].to(device), **drawing, **sampling)
            latents = space.denormalise(latents).to(device_of(tokenizer))
            return tokenizer.decode(latents).float().clamp(-1, 1).cpu()

    # A CPU's cores take batches of their own, small enough that even 16 images have two.
    if device.type == "cpu":
        batch_size = min(batch_size, max(8, min(32, math.ceil(len(rows) / 2))))
    batches = rows.split(batch_size)
    count = 0
    with eval_mode(model, tokenizer, sampling.get("weak_model")):
        for batch, images in zip(batches, each_part(drawn, batches, device=device)):
            count += len(batch)
            if progress:
                progress.update(count)
            yield batch, images
