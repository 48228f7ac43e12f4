"""Train a diffusion transformer on cached latents (paper section 4): flow matching, class dropout, EMA.

for record in train_diffusion(config, latents, run): ...
"""

import dataclasses
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn

from maetok_lab.config import not_in_fingerprint
from maetok_lab.data.latents import LatentDataset, LatentSpace
from maetok_lab.device import Precision, autocast
from maetok_lab.diffusion.model import DiffusionConfig, DiffusionTransformer, describe_model
from maetok_lab.diffusion.path import PathName, TimeSampling, draw_times, velocity_loss
from maetok_lab.generation.images import draw as draw_samples
from maetok_lab.pictures import image_grid, save_png
from maetok_lab.protocols import AnyTokenizer
from maetok_lab.rng import generator, seed_step
from maetok_lab.runs import Run
from maetok_lab.training import common
from maetok_lab.training.common import OptimizerConfig
from maetok_lab.training.records import StepRecord

TIME_BINS = 4  # the loss is logged over all times and over quarters of [0, 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionTraining:
    """Everything about one training. `latents` and `tokenizer` are fingerprints of the cache and of what made it.

    `class_dropout` is the share of labels replaced by the null class; several `ema_decays` are kept at once. `num_classes` 0
    is an unconditional model: the cache's labels are not read. `direction_weight`: see `velocity_loss`.
    """

    model: DiffusionConfig
    num_classes: int
    path: PathName = "linear"
    time_sampling: TimeSampling = "logit-normal"
    direction_weight: float = 0.0
    class_dropout: float = 0.1
    optimizer: OptimizerConfig = OptimizerConfig(
        weight_decay=0.0, betas=(0.9, 0.999), schedule="constant", warmup=0.0
    )
    num_steps: int
    batch_size: int
    ema_decays: tuple[float, ...] = (0.9999,)
    precision: Precision = "bf16"
    seed: int = 0
    latents: str = ""
    tokenizer: str = ""
    compile: bool = not_in_fingerprint(False)
    log_every: int = not_in_fingerprint(100)
    save_every: int = not_in_fingerprint(1000)
    picture_every: int = not_in_fingerprint(1000)

    def __post_init__(self):
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_steps and batch_size must be at least 1, not {self.num_steps} and {self.batch_size}"
            )
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"class_dropout must be in [0, 1), not {self.class_dropout}")
        if not self.ema_decays:
            raise ValueError("need at least one ema_decay: sampling uses the averaged weights")


@dataclasses.dataclass
class State:
    """What a training carries from step to step, and what a checkpoint holds."""

    model: DiffusionTransformer
    emas: dict[str, common.Ema]
    optimizers: dict[str, torch.optim.Optimizer]
    guard: common.Guard
    step: int = 0

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        groups = {
            "model": self.model.state_dict(),
            "optimizer": common.optimizer_tensors(self.optimizers),
        }
        return groups | {name: ema.module.state_dict() for name, ema in self.emas.items()}


def ema_name(decay: float) -> str:
    """The checkpoint group of an EMA rate: 0.9999 -> "ema-0.9999"."""
    return f"ema-{decay:g}"


def train_diffusion(
    config: DiffusionTraining,
    latents: LatentDataset,
    run: Run,
    *,
    validation: LatentDataset | None = None,
    tokenizer: AnyTokenizer | None = None,
    cpu: bool = False,
) -> Iterator[StepRecord]:
    """Train, or continue, into `run`; yields one record a step. A finished run yields nothing.

    With a `tokenizer` that decodes, samples of fixed seeds go into runs/NAME/samples at `picture_every`.
    At the end the loss on `validation` latents (normalised with the training statistics) is logged by time. Of several
    processes only the first writes; the others may hold a `Run` that only reads.
    Raises ValueError when the cache is not the one of the config, NonFiniteTraining after several non-finite steps.
    """
    if run.finished:
        return
    check_latents(config, latents)
    engine = common.make_engine(config.batch_size, cpu=cpu)
    writes = engine.is_main_process
    state = start(config, latents, run, engine.device)
    if writes:
        run.rewind_metrics(state.step)
    forward = engine.prepare_model(state.model)
    if config.compile:
        forward = torch.compile(forward)
    size = config.batch_size
    while state.step < config.num_steps:
        losses, times = training_step(config, state, forward, engine, latents)
        step = state.step = state.step + 1
        last = step == config.num_steps
        record = picture = None
        saves, logs = step % config.save_every == 0 or last, step % config.log_every == 0 or last
        if saves or logs:
            state.guard.settle(step - 1, {"velocity": losses.mean()})
        if logs:
            record = by_time(engine.gather(losses), engine.gather(times))
            if writes:
                run.log(
                    {
                        "step": step,
                        "images": step * size,
                        "split": "train",
                        **record,
                        "skipped": state.guard.skipped,
                    }
                )
        if writes and tokenizer is not None and (step % config.picture_every == 0 or last):
            picture = write_samples(config, state, tokenizer, latents.space, run)
        if writes and saves:
            save(state, run)
        yield (told := StepRecord(step, config.num_steps, step * size, record, picture))
        if told.stops(engine.num_processes):
            state.guard.settle(step - 1, {"velocity": losses.mean()})
            return save(state, run)
    if writes:
        finish(config, state, run, validation, latents.space)


def save(state: State, run: Run) -> None:
    """Write everything that continuing needs."""
    run.save_checkpoint(
        state.step, state.tensors(), {"skipped": state.guard.skipped, **describe_model(state.model)}
    )


def finish(
    config: DiffusionTraining,
    state: State,
    run: Run,
    validation: LatentDataset | None,
    space: LatentSpace,
) -> None:
    """Score the first average on `validation` latents, where there are any, and write the summary."""
    size = config.batch_size
    summary = {"steps": state.step, "images": state.step * size, "skipped": state.guard.skipped}
    if validation is not None:
        ema = next(iter(state.emas.values())).module
        held_out = validation_loss(config, ema, validation, space)
        if run.metrics("val").empty:  # else a kill came between this line and the summary
            run.log({"step": state.step, "images": state.step * size, "split": "val", **held_out})
        summary |= {f"val_{name}": value for name, value in held_out.items()}
    run.finish(summary)


def start(
    config: DiffusionTraining, latents: LatentDataset, run: Run, device: torch.device
) -> State:
    """Fresh weights, or the state of the run's newest checkpoint."""
    seed_step(config.seed, -1)
    sizes = {
        "num_tokens": latents.num_tokens,
        "latent_dim": latents.latent_dim,
        "num_classes": config.num_classes,
    }
    model = DiffusionTransformer(config.model, **sizes).to(device)
    optimizers = common.make_optimizers(config.optimizer, {"model": model})
    emas = {ema_name(decay): common.Ema(model, decay) for decay in config.ema_decays}
    state = State(model, emas, optimizers, common.Guard(deferred=device.type == "cuda"))
    checkpoint = run.load_checkpoint()
    if checkpoint:
        model.load_state_dict(checkpoint.tensors["model"])
        for name, ema in emas.items():
            ema.module.load_state_dict(checkpoint.tensors[name])
        common.load_optimizer_tensors(optimizers, checkpoint.tensors["optimizer"])
        state.step, state.guard.skipped = checkpoint.step, checkpoint.state["skipped"]
    model.train()
    return state


def training_step(
    config: DiffusionTraining,
    state: State,
    forward: nn.Module,
    engine: Accelerator,
    latents: LatentDataset,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer step on this process's share of the global batch; returns its losses and times, each (B,)."""
    step = state.step
    share = slice(engine.process_index, None, engine.num_processes)
    indices = common.batch_indices(
        config.seed, step, config.batch_size, len(latents), latents.place
    )
    draw = generator(config.seed, "views", step, device=latents.place)
    view = torch.randint(latents.views, (len(indices),), generator=draw, device=latents.place)
    dropped = torch.rand(len(indices), generator=draw, device=latents.place) < config.class_dropout
    x, labels = latents.batch(indices[share], view=view[share])
    labels = (
        torch.where(dropped[share].to(labels.device), config.num_classes, labels)
        if config.num_classes
        else labels * 0
    )
    seed_step(config.seed, step)
    # Drawn for the global batch and then shared out: the loss does not depend on the number of processes.
    draw = generator(config.seed, "flow", step, device=engine.device)
    times = draw_times(len(indices), config.time_sampling, path=config.path, generator=draw)[share]
    noise = torch.randn(len(indices), *x.shape[1:], generator=draw, device=engine.device)[share]
    with autocast(engine.device, config.precision):
        losses = velocity_loss(
            forward,
            x,
            labels,
            t=times,
            noise=noise,
            path=config.path,
            direction_weight=config.direction_weight,
        )
    engine.backward(losses.mean())
    parameters = common.grad_parameters(state.optimizers.values())
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.clip)
    common.set_learning_rate(
        state.optimizers, common.learning_rate_factor(config.optimizer, step, config.num_steps)
    )
    state.guard.step(
        state.optimizers.values(),
        state.emas.values(),
        norm,
        step,
        {"velocity": losses.detach().mean()},
    )
    for parameter in parameters:
        parameter.grad = None
    return losses.detach(), times


@torch.inference_mode()
def validation_loss(
    config: DiffusionTraining,
    model: DiffusionTransformer,
    validation: LatentDataset,
    space,
    *,
    repeats: int = 4,
) -> dict[str, float]:
    """Loss of the averaged weights on held-out latents, over `repeats` fixed draws of time and noise."""
    model.eval()
    losses, times = [], []
    for repeat in range(repeats):
        for number, indices in enumerate(torch.arange(len(validation)).split(256)):
            x = space.normalise(validation.latents(indices))
            draw = generator(config.seed, "validation", repeat, number)
            labels = validation.labels[indices].to(x.device) * (config.num_classes > 0)
            t = draw_times(len(x), config.time_sampling, path=config.path, generator=draw)
            options = {"path": config.path, "direction_weight": config.direction_weight}
            losses.append(velocity_loss(model, x, labels, t=t, generator=draw, **options).cpu())
            times.append(t)
    return by_time(torch.cat(losses), torch.cat(times))


def write_samples(
    config: DiffusionTraining, state: State, tokenizer: AnyTokenizer, space: LatentSpace, run: Run
) -> str:
    """Sixteen images of the first average, of classes spread over all, the same seeds every time. -> the picture's path"""
    labels = torch.linspace(0, max(config.num_classes - 1, 0), 16).long()
    model, rows = next(iter(state.emas.values())).module, torch.arange(16)
    settings = {
        "seed": config.seed,
        "batch_size": 16,
        "precision": config.precision,
        "num_steps": 25,
        "path": config.path,
    }
    ((_, images),) = draw_samples(model, tokenizer, space, labels, rows, **settings)
    path = run.sample_path(state.step)
    save_png(path, image_grid(images, columns=8), scale=max(1, 64 // images.shape[-1]))
    return str(path)


def by_time(losses: torch.Tensor, times: torch.Tensor) -> dict[str, float]:
    """Mean loss, and the mean over each quarter of time that has samples. losses, times (B,) -> {"loss", "loss/t0.00", ...}"""
    result = {"loss": losses.mean().item()}
    quarter = (times.cpu() * TIME_BINS).long().clamp(0, TIME_BINS - 1)
    for index in range(TIME_BINS):
        chosen = losses.cpu()[quarter == index]
        if len(chosen):
            result[f"loss/t{index / TIME_BINS:.2f}"] = chosen.mean().item()
    return result


def check_latents(config: DiffusionTraining, latents: LatentDataset) -> None:
    """One line when the cache is not the one of the config, or its latents are not normalised."""
    if config.latents and latents.fingerprint != config.latents:
        raise ValueError(
            f"the run was configured for latent cache {config.latents}, but this is {latents.fingerprint}"
        )
    low, high = int(latents.labels.min()), int(latents.labels.max())
    if config.num_classes and not 0 <= low <= high < config.num_classes:
        raise ValueError(
            f"the cache has labels {low} .. {high}, but num_classes is {config.num_classes}"
        )
    x, _ = latents.batch(torch.arange(min(256, len(latents))))
    latents.space.check(x, tokenizer=config.tokenizer or None)
