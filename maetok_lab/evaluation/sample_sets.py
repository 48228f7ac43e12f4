"""Many samples on disk: a run of PNG files and one .npz, drawn by all processes.

    runs/NAME/  images/0000000.png ...
                samples.npz  (arr_0 images, arr_1 labels: what the ADM suite reads)

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
from maetok_lab.data.readers import BrokenImageError, read_rgb
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.diffusion.path import shift_for
from maetok_lab.diffusion.sampling import Guidance
from maetok_lab.evaluation.npz import write_npz
from maetok_lab.evaluation.protocol import EvalProtocol
from maetok_lab.files import atomic_path, make_folder
from maetok_lab.generation.images import draw
from maetok_lab.identity import fingerprint_of, same_weights, tensors_fingerprint
from maetok_lab.pictures import from_uint8, to_uint8
from maetok_lab.processes import own_share, process_group, wait_for_all
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.rng import generator
from maetok_lab.runs import Run
from maetok_lab.runs.checkpoints import read_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSet:
    """The config of a run of samples: all that they depend on."""

    protocol: EvalProtocol  # how they are drawn
    model: str  # hash of the diffusion model's weights
    tokenizer: str  # its fingerprint
    labels: str  # hash of them, in order


def class_labels(
    protocol: EvalProtocol, num_classes: int, *, pool: torch.Tensor | None = None
) -> torch.Tensor:
    """The label (num_images,) of each image, as the protocol says.

    "equal" takes every class in turn, "none" the null class. "random" draws from `pool`, the labels
    of real images, with their frequencies; without one, evenly from all classes.
    """
    count = protocol.num_images
    if count is None or protocol.labels is None:
        raise ValueError(
            "the protocol must state num_images and labels before samples can be drawn, "
            f"not {count} and {protocol.labels}"
        )
    if protocol.labels == "equal":
        return torch.arange(count) % num_classes
    if protocol.labels == "none":
        return torch.full((count,), num_classes)
    if pool is None:
        pool = torch.arange(num_classes)
    random = generator(protocol.seed, "class-labels")
    return pool[torch.randint(len(pool), (count,), generator=random)]


def sampling_protocol(run: Run, **fields: Any) -> EvalProtocol:
    """How a diffusion run's samples are drawn: its path, shift and first EMA rate, 20 Euler steps.

    `fields` are those of EvalProtocol: `steps=25, guidance_scale=3.0, guidance_high=0.75`.
    """
    facts = {
        "sampler": "euler",
        "steps": 20,
        "path": run.config["path"],
        "time_shift": _trained_shift(run),
        "ema": run.config["ema_decays"][0],
    }
    return EvalProtocol(**facts | fields)


def _trained_shift(run: Run) -> float | None:
    """The time shift of a diffusion run; None is none."""
    if run.config.get("time_shift", 1.0) == 1:
        return None
    # one by dimension needs the size of the latents, which a checkpoint says
    state = read_state(run.folder, run.checkpoint_steps()[-1])["state"]
    return shift_for(run.config["time_shift"], state["num_tokens"], state["latent_dim"])


def sampling_options(
    protocol: EvalProtocol, weak_model: DiffusionTransformer | None = None
) -> dict[str, Any]:
    """Options of `generation.images.generate`, from the protocol alone.

    So numbers and images cannot disagree. Raises ValueError where the protocol leaves one open, and
    for a `weak_model` other than the one it names.
    """
    missing = [name for name in ("sampler", "steps", "path") if getattr(protocol, name) is None]
    if missing:
        raise ValueError(
            f"the protocol must state {', '.join(missing)} before samples can be drawn"
        )
    actual = None if weak_model is None else tensors_fingerprint(weak_model.state_dict())
    if actual != protocol.weak_model:
        raise ValueError(
            f"the protocol says weak_model = {protocol.weak_model!r}, but the one given is "
            f"{actual!r}: state its `identity.tensors_fingerprint` there, and give that model"
        )
    # without an interval guidance applies at all t
    guidance = None
    if protocol.guidance_scale is not None:
        interval = {"low": protocol.guidance_low, "high": protocol.guidance_high}
        stated = {bound: t for bound, t in interval.items() if t is not None}
        guidance = Guidance(protocol.guidance_scale, **stated)
    return {
        "method": protocol.sampler,
        "num_steps": protocol.steps,
        "path": protocol.path,
        "time_shift": protocol.time_shift,
        "guidance": guidance,
        "weak_model": weak_model,
        "seed": protocol.seed,
        "precision": protocol.precision,
    }


def sample_set(
    protocol: EvalProtocol,
    model: DiffusionTransformer,
    tokenizer: AnyTokenizer,
    labels: torch.Tensor,
    *,
    weak_model: DiffusionTransformer | None = None,
) -> SampleSet:
    """The config of a run of samples, with hashes of what draws them.

    Raises ValueError for a protocol that leaves open how they are drawn.
    """
    sampling_options(protocol, weak_model)  # raises where the protocol leaves something open
    if len(labels) != protocol.num_images:
        raise ValueError(f"{len(labels)} labels for {protocol.num_images} images")
    return SampleSet(
        protocol=protocol,
        model=tensors_fingerprint(model.state_dict()),
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
    weak_model: DiffusionTransformer | None = None,
) -> Iterator[tuple[int, int]]:
    """Draw the images that `run` lacks, yielding (this process's images so far, all of its share).

    In a `torch.distributed` group every process calls this, the first with the run it opened, the
    others with `Run(folder)`. Raises ValueError for models or labels other than the config's.
    """
    run.reopen_if_damaged()
    if run.finished:
        return
    protocol = config.protocol
    actual = sample_set(protocol, model, tokenizer, labels, weak_model=weak_model)
    if same_weights(tokenizer, config.tokenizer):  # also under the name that an older run has
        actual = dataclasses.replace(actual, tokenizer=config.tokenizer)
    if actual != config:
        lines = "; ".join(differing_fields(to_json(actual), to_json(config)))
        raise ValueError(
            f"run {run.name} was configured for another model, tokenizer or other labels: {lines}"
        )

    # this process draws what a stopped run lacks of its share
    make_folder(run.folder / "images")
    share = own_share(len(labels))
    missing = [row for row in share if not image_path(run, row).exists()]
    count = len(share) - len(missing)
    batches = draw(
        model,
        tokenizer,
        space,
        labels,
        torch.tensor(missing, dtype=torch.long),
        batch_size=batch_size,
        **sampling_options(protocol, weak_model),
    )
    for rows, images in batches:
        levels = to_uint8(images, protocol.rounding).permute(0, 2, 3, 1).numpy()
        for row, pixels in zip(rows.tolist(), levels):
            with atomic_path(image_path(run, row)) as temporary:
                Image.fromarray(pixels).save(temporary, "PNG")
        count += len(rows)
        yield count, len(share)

    # the first process puts all shares together, the others wait until the run is finished
    wait_for_all()
    if process_group()[0] == 0:
        pictures = (_read(image_path(run, row)) for row in range(len(labels)))
        write_npz(run.folder / "samples.npz", pictures, count=len(labels), labels=labels)
        run.finish({"images": len(labels)}, files=[run.folder / "samples.npz"])
    wait_for_all()


def image_path(run: Run, row: int) -> Path:
    """Where image number `row` is."""
    return run.folder / "images" / f"{row:07d}.png"


def _read(path: Path) -> torch.Tensor:
    """One PNG as images (1, 3, H, W) in [-1, 1]."""
    try:
        pixels = torch.from_numpy(np.array(read_rgb(path)))
    except BrokenImageError as problem:
        raise BrokenImageError(f"{path}: {problem}") from problem
    return from_uint8(pixels.permute(2, 0, 1)[None])
