"""Many samples on disk: a run that holds n images of a model as PNG files and as one .npz, made by all processes.

    runs/NAME/  images/0000000.png ... samples.npz (arr_0 images, arr_1 labels: what the ADM suite reads)

A stopped run goes on with the images that are missing: image k depends on the seed and k alone.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maetok_lab.config import differing_fields, to_json
from maetok_lab.data.latents import LatentSpace
from maetok_lab.data.readers import read_rgb
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.sampling import Guidance
from maetok_lab.evaluation.npz import write_npz
from maetok_lab.evaluation.protocol import EvalProtocol
from maetok_lab.files import atomic_path
from maetok_lab.generation.images import draw
from maetok_lab.identity import fingerprint_of, same_weights, tensors_fingerprint
from maetok_lab.pictures import to_uint8
from maetok_lab.processes import process_group, wait_for_all
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.rng import generator
from maetok_lab.runs import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSet:
    """What a run of samples depends on: how they are drawn (the protocol), and hashes of the weights and the labels."""

    protocol: EvalProtocol
    model: str
    tokenizer: str
    labels: str


def class_labels(
    protocol: EvalProtocol, num_classes: int, *, pool: torch.Tensor | None = None
) -> torch.Tensor:
    """The label (num_images,) of each image: every class in turn, drawn at random, or the null class.

    "random" draws from `pool`, the labels of real images, with their frequencies, or evenly from all classes without one.
    """
    if protocol.num_images is None or protocol.labels is None:
        stated = f"{protocol.num_images} and {protocol.labels}"
        raise ValueError(
            f"the protocol must state num_images and labels before samples can be drawn, not {stated}"
        )
    if protocol.labels == "equal":
        return torch.arange(protocol.num_images) % num_classes
    if protocol.labels == "none":
        return torch.full((protocol.num_images,), num_classes)
    pool = torch.arange(num_classes) if pool is None else pool
    picks = torch.randint(
        len(pool), (protocol.num_images,), generator=generator(protocol.seed, "class-labels")
    )
    return pool[picks]


def sampling_options(protocol: EvalProtocol) -> dict[str, Any]:
    """What `samples.generate` is told, taken from the protocol alone, so that numbers and images cannot disagree."""
    missing = [name for name in ("sampler", "steps", "path") if getattr(protocol, name) is None]
    if missing:
        raise ValueError(
            f"the protocol must state {', '.join(missing)} before samples can be drawn"
        )
    guidance = None
    if protocol.guidance_scale is not None:
        low, high = protocol.guidance_low, protocol.guidance_high
        guidance = Guidance(
            protocol.guidance_scale, 0.0 if low is None else low, 1.0 if high is None else high
        )
    options = {
        "method": protocol.sampler,
        "num_steps": protocol.steps,
        "path": protocol.path,
        "guidance": guidance,
    }
    return options | {"seed": protocol.seed, "precision": protocol.precision}


def sample_set(
    protocol: EvalProtocol,
    model: DiffusionTransformer,
    tokenizer: AnyTokenizer,
    labels: torch.Tensor,
) -> SampleSet:
    """The config of a run of samples. Raises ValueError for a protocol that leaves open how they are drawn."""
    sampling_options(protocol)
    if len(labels) != protocol.num_images:
        raise ValueError(f"{len(labels)} labels for {protocol.num_images} images")
    weights = tensors_fingerprint(model.state_dict())
    return SampleSet(
        protocol=protocol,
        model=weights,
        tokenizer=tokenizer.fingerprint,
        labels=fingerprint_of(labels.tolist()),
    )


def write_samples(
    model: DiffusionTransformer,
    tokenizer: AnyTokenizer,
    space: LatentSpace,
    labels: torch.Tensor,
    config: SampleSet,
    run: Run,
    *,
    batch_size: int = 64,
) -> Iterator[tuple[int, int]]:
    """Draw the images that are missing in `run`, yielding (images of this process's share that are there, its share).

    One batch is held at a time. In a `torch.distributed` group every process calls this: the first with the run it opened,
    the others with `Run(folder)`; each writes its share, and the first puts all into the .npz and finishes the run. Raises
    ValueError for models or labels other than the config's.
    """
    if run.finished:
        return
    actual = sample_set(config.protocol, model, tokenizer, labels)
    if same_weights(tokenizer, config.tokenizer):
        actual = dataclasses.replace(actual, tokenizer=config.tokenizer)
    if actual != config:
        lines = "; ".join(differing_fields(to_json(actual), to_json(config)))
        raise ValueError(
            f"run {run.name} was configured for another model, tokenizer or other labels: {lines}"
        )
    rank, processes = process_group()
    folder = run.folder / "images"
    folder.mkdir(exist_ok=True)
    share = torch.arange(len(labels))[rank::processes]
    missing = torch.tensor(
        [row for row in share.tolist() if not image_path(run, row).exists()], dtype=torch.long
    )
    done = len(share) - len(missing)
    options = sampling_options(config.protocol)
    for rows, images in draw(
        model, tokenizer, space, labels, missing, batch_size=batch_size, **options
    ):
        for row, pixels in zip(rows.tolist(), to_uint8(images).permute(0, 2, 3, 1).numpy()):
            with atomic_path(image_path(run, row)) as temporary:
                Image.fromarray(pixels).save(temporary, "PNG")
        done += len(rows)
        yield done, len(share)
    wait_for_all()
    if rank == 0:
        _finish(run, labels)
    wait_for_all()


def image_path(run: Run, row: int) -> Path:
    """Where image number `row` is."""
    return run.folder / "images" / f"{row:07d}.png"


def _finish(run: Run, labels: torch.Tensor) -> None:
    batches = (_read(image_path(run, row)) for row in range(len(labels)))
    write_npz(run.folder / "samples.npz", batches, count=len(labels), labels=labels)
    run.finish({"images": len(labels)})


def _read(path: Path) -> torch.Tensor:
    """One PNG as images (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(read_rgb(path))).permute(2, 0, 1)[None].float() / 127.5 - 1
