"""Train a diffusion transformer on cached latents (paper section 4): flow matching, class dropout.

for record in train_diffusion(config, latents, run): ...
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn

from maetok_lab.config import not_in_fingerprint, younger
from maetok_lab.data.latents import LatentDataset, LatentSpace, spread_rows
from maetok_lab.device import Precision, autocast
from maetok_lab.diffusion.model import (
    DiffusionConfig,
    DiffusionTransformer,
    describe_model,
    own_labels,
)
from maetok_lab.diffusion.path import (
    PathName,
    Prediction,
    TimeSampling,
    TimeShift,
    check_shift,
    draw_times,
    shift_for,
    velocity_loss,
)
from maetok_lab.generation.images import draw
from maetok_lab.pictures import image_grid, save_png
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.rng import generator
from maetok_lab.runs import Checkpoint, Run
from maetok_lab.training.loop import train
from maetok_lab.training.optim import Ema, OptimizerConfig, Spread
from maetok_lab.training.order import Share, batch_indices
from maetok_lab.training.task import StepRecord, Terms, check_steps

TIME_BINS = 4  # the loss is logged over all times and over quarters of [0, 1]
VALIDATION_DRAWS = 4  # of time and noise, for each held-out latent
PICTURE_STEPS = 25  # Euler steps of the pictures that a training leaves


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionTraining:
    """Everything about one training of a diffusion transformer; intervals are in steps."""

    model: DiffusionConfig  # sizes and parts of the network
    num_classes: int  # 0: unconditional, the cache's labels are not read
    path: PathName = "linear"  # from noise to latents
    # what the network gives; of "data" a velocity is made before the loss, see `Path.velocity`
    prediction: Prediction = younger("velocity")
    time_sampling: TimeSampling = "logit-normal"  # which times are trained most
    # of these times and of sampling's: above 1 towards noise; "dimension": see `dimension_shift`
    time_shift: TimeShift = younger(1.0)
    direction_weight: float = 0.0  # LightningDiT's, see `velocity_loss`
    class_dropout: float = 0.1  # share of labels that become the null class, for guidance
    # the paper's SiT: constant rate, no weight decay
    optimizer: OptimizerConfig = OptimizerConfig(
        weight_decay=0.0, betas=(0.9, 0.999), schedule="constant", warmup=0.0
    )
    num_steps: int  # of the optimizer
    batch_size: int  # of all processes together
    ema_decays: tuple[float, ...] = (0.9999,)  # averages kept side by side; the first is scored
    precision: Precision = "bf16"  # of the forward pass; weights stay fp32
    seed: int = 0  # of weights, order, noise and times
    latents: str = ""  # fingerprint of the latent cache
    tokenizer: str = ""  # fingerprint of what made the latents
    # parts that a batch goes through in; "fit": as few as memory allows
    accumulate: int | Literal["fit"] = not_in_fingerprint(1)
    # keep less of the forward pass for the backward pass, which repeats it block by block
    recompute: bool = not_in_fingerprint(False)
    # a minute at the start; "auto": a long training on a CUDA GPU
    compile: bool | Literal["auto"] = not_in_fingerprint("auto")
    log_every: int = not_in_fingerprint(100)  # losses into metrics.jsonl
    save_every: int = not_in_fingerprint(1000)  # a checkpoint
    # a checkpoint as well, after so long without one
    save_minutes: float = not_in_fingerprint(10.0)
    picture_every: int = not_in_fingerprint(1000)  # sixteen samples

    def __post_init__(self):
        check_steps(self)
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"class_dropout must be in [0, 1), not {self.class_dropout}")
        if not self.ema_decays:
            raise ValueError("need at least one ema_decay: sampling uses the averaged weights")
        if self.time_shift != "dimension":
            check_shift(self.time_shift)


def train_diffusion(
    config: DiffusionTraining,
    latents: LatentDataset,
    run: Run,
    *,
    validation: LatentDataset | None = None,
    tokenizer: AnyTokenizer | None = None,
    cpu: bool = False,
    processes: int = 1,
) -> Iterator[StepRecord]:
    """Train, or continue, into `run`; see `loop.train`.

    With a `tokenizer` that decodes, samples of fixed seeds go into runs/NAME/samples at
    `picture_every`. At the end the loss on `validation` latents is logged, by time. Raises
    ValueError when the cache is not the config's.
    """
    task = DiffusionTask(config, latents, validation=validation, tokenizer=tokenizer)
    return train(task, run, cpu=cpu, processes=processes)


def ema_name(decay: float) -> str:
    """The checkpoint group of an EMA rate: 0.9999 -> "ema-0.9999"."""
    return f"ema-{decay:g}"


@dataclasses.dataclass
class DiffusionBatch:
    """This process's rows of one step, on the device."""

    latents: torch.Tensor  # (B, N, C), normalised
    labels: torch.Tensor  # (B,), num_classes where the label was dropped
    times: torch.Tensor  # (B,) in [0, 1], 1 is noise
    noise: torch.Tensor  # (B, N, C)


class DiffusionTask:
    """A diffusion transformer's training, for `loop.train`."""

    every_weight_has_a_gradient = True
    parts_are_independent = True

    def __init__(
        self,
        config: DiffusionTraining,
        latents: LatentDataset,
        *,
        validation: LatentDataset | None = None,
        tokenizer: AnyTokenizer | None = None,
    ):
        self.config = config
        self.latents = latents
        self.validation = validation
        self.tokenizer = tokenizer
        self.ema_decays = {ema_name(decay): decay for decay in config.ema_decays}

    def check(self) -> None:
        """ValueError when the cache is not the config's, or its latents are not normalised."""
        config = self.config
        latents = self.latents
        if config.latents and latents.fingerprint != config.latents:
            raise ValueError(
                f"the run was configured for latent cache {config.latents}, "
                f"but this is {latents.fingerprint}"
            )
        low = int(latents.labels.min())
        high = int(latents.labels.max())
        if config.num_classes and not 0 <= low <= high < config.num_classes:
            raise ValueError(
                f"the cache has labels {low} .. {high}, but num_classes is {config.num_classes}"
            )
        x, _ = latents.batch(spread_rows(len(latents)))
        latents.space.check(x, tokenizer=config.tokenizer or None)

    def build(self, device: torch.device) -> None:
        """Fresh weights."""
        config = self.config
        self.module = DiffusionTransformer(
            config.model,
            num_tokens=self.latents.num_tokens,
            latent_dim=self.latents.latent_dim,
            num_classes=config.num_classes,
        ).to(device)
        self.module.set_training(config.path, config.prediction, config.time_shift)
        self.model = self.module
        self.trained = {"model": self.module}
        self.autocast = autocast(device, config.precision)

    def compile(self) -> None:
        """Compile the whole model."""
        self.module.compile()

    def batches(self, share: Share) -> Iterator[DiffusionBatch]:
        """Latents with labels, times and noise; everything is drawn for the global batch."""
        # So the loss does not depend on the number of processes.
        config = self.config
        latents = self.latents
        size = config.batch_size
        rows = share.rows
        device = share.engine.device
        for step in range(share.step, config.num_steps):
            # Drawn where the cache lies, so that picking a batch there waits for nothing.
            place = latents.place
            indices = batch_indices(config.seed, step, size, len(latents), place)
            draws = generator(config.seed, "views", step, device=place)
            view = torch.randint(latents.views, (size,), generator=draws, device=place)
            dropped = torch.rand(size, generator=draws, device=place) < config.class_dropout
            x, labels = latents.batch(indices[rows], view=view[rows])
            if config.num_classes:
                labels = torch.where(dropped[rows].to(labels.device), config.num_classes, labels)
            else:
                labels = labels * 0

            draws = generator(config.seed, "flow", step, device=device)
            times = training_times(config, latents, size, draws)
            noise = torch.randn(size, *x.shape[1:], generator=draws, device=device)
            yield DiffusionBatch(x, labels, times[rows], noise[rows])

    def before_step(self, batch: DiffusionBatch, parts: list[Share], spread: Spread) -> None:
        """No part needs another one's."""

    def loss(
        self, forward: nn.Module, batch: DiffusionBatch, part: Share
    ) -> tuple[torch.Tensor, Terms]:
        """The mean velocity loss; of every item its loss and its time."""
        config = self.config
        rows = part.local
        times = batch.times[rows]
        with self.autocast:
            losses = velocity_loss(
                forward,
                batch.latents[rows],
                batch.labels[rows],
                t=times,
                noise=batch.noise[rows],
                path=config.path,
                prediction=config.prediction,
                direction_weight=config.direction_weight,
            )
        return losses.mean(), {"velocity": losses, "time": times}

    def after_step(self, batch: DiffusionBatch, share: Share, factor: float) -> Terms:
        """Nothing is trained beside."""
        return {}

    def settle(self, step: int, terms: Terms) -> None:
        """There is no guard but the loop's."""

    def numbers(self, terms: Terms, engine: Accelerator) -> dict[str, float]:
        """The mean loss over all times, and over each quarter of time."""
        return by_time(engine.gather(terms["velocity"]), engine.gather(terms["time"]))

    def picture(self, emas: Mapping[str, Ema], step: int, run: Run) -> str | None:
        """Sixteen samples of the first average, of classes spread over all, with fixed seeds."""
        if self.tokenizer is None:
            return None
        # The same noise and labels at every interval: what differs is what was learned.
        config = self.config
        labels = torch.linspace(0, max(config.num_classes - 1, 0), 16).long()
        batches = draw(
            next(iter(emas.values())).module,
            self.tokenizer,
            self.latents.space,
            labels,
            torch.arange(16),
            seed=config.seed,
            batch_size=16,
            precision=config.precision,
            num_steps=PICTURE_STEPS,
            path=config.path,
        )
        images = torch.cat([batch for _, batch in batches])
        path = run.sample_path(step)
        save_png(path, image_grid(images, columns=8), scale=max(1, 64 // images.shape[-1]))
        return str(path)

    def checkpoint(self, emas: Mapping[str, Ema]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The weights, and the sizes that they were made for."""
        return {"model": self.module.state_dict()}, describe_model(self.module)

    def load(self, checkpoint: Checkpoint) -> None:
        """The inverse of `checkpoint`."""
        self.module.load_state_dict(checkpoint.tensors["model"])

    def summary(self, emas: Mapping[str, Ema], step: int, run: Run) -> dict[str, float]:
        """The first average's loss on `validation` latents, logged too."""
        if self.validation is None:
            return {}
        model = next(iter(emas.values())).module
        losses = validation_loss(self.config, model, self.validation, self.latents.space)
        if run.metrics("val").empty:  # else a kill came between this line and the summary
            images = step * self.config.batch_size
            run.log({"step": step, "images": images, "split": "val", **losses})
        return {f"val_{name}": value for name, value in losses.items()}


def training_times(
    config: DiffusionTraining, latents: LatentDataset, count: int, draws: torch.Generator
) -> torch.Tensor:
    """Times as this training draws them for these latents. -> (count,)"""
    shift = shift_for(config.time_shift, latents.num_tokens, latents.latent_dim)
    return draw_times(
        count, config.time_sampling, path=config.path, generator=draws, time_shift=shift
    )


@torch.inference_mode()
def validation_loss(
    config: DiffusionTraining,
    model: DiffusionTransformer,
    validation: LatentDataset,
    space: LatentSpace,
) -> dict[str, float]:
    """Losses by time of averaged weights on held-out latents, over fixed draws."""
    model.eval()
    losses = []
    times = []
    for repeat in range(VALIDATION_DRAWS):
        for number, indices in enumerate(torch.arange(len(validation)).split(256)):
            # Normalised with the training statistics: that is the space the model knows.
            x = space.normalise(validation.latents(indices))
            labels = own_labels(model, validation.labels[indices].to(x.device))
            draws = generator(config.seed, "validation", repeat, number)
            t = training_times(config, validation, len(x), draws)
            loss = velocity_loss(
                model,
                x,
                labels,
                t=t,
                generator=draws,
                path=config.path,
                prediction=config.prediction,
                direction_weight=config.direction_weight,
            )
            losses.append(loss.cpu())
            times.append(t)
    return by_time(torch.cat(losses), torch.cat(times))


def by_time(losses: torch.Tensor, times: torch.Tensor) -> dict[str, float]:
    """Mean loss, and the mean over each quarter of time that has samples.

    losses, times (B,) -> {"loss": ..., "loss/t0.00": ..., ...}
    """
    result = {"loss": losses.mean().item()}
    losses = losses.cpu()
    bins = (times.cpu() * TIME_BINS).long().clamp(0, TIME_BINS - 1)
    for index in range(TIME_BINS):
        inside = losses[bins == index]
        if len(inside):
            result[f"loss/t{index / TIME_BINS:.2f}"] = inside.mean().item()
    return result
