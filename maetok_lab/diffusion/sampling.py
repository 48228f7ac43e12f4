"""Noise to latents: Euler, Heun, Euler-Maruyama and dopri5 under one call, with guidance.

`sample` runs one of the integrators below; each follows `GuidedVelocity`, which decides whether the
null pass is computed.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from maetok_lab.diffusion.path import PATHS, Path, PathName, check_shift, shift_times
from maetok_lab.hints import choose
from maetok_lab.rng import generator

Method = Literal["euler", "heun", "euler_maruyama", "dopri5"]
# (x_t, t, labels) -> velocity; with guidance it needs `num_classes`, its null label
Model = Callable[[Tensor, Tensor, Tensor], Tensor]
Guide = str | int  # what guides: the null class, the step of a checkpoint, a name of weights
NULL_CLASS = "null class"
# From here (before a time shift) the release's Euler-Maruyama goes to 0 without noise.
LAST_NOISY_TIME = 0.04


# ---- guidance ----
@dataclasses.dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance while low <= t <= high: v = v_null + scale * (v_label - v_null).

    It is on all channels. t = 1 is noise, so the paper's [0, 0.75] leaves the noisiest quarter
    unguided. Raises ValueError for what is no interval in [0, 1].
    """

    scale: float  # 1 is none
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"guidance needs 0 <= low <= high <= 1, not low {self.low}, high {self.high}"
            )

    def applies(self, t: float) -> bool:
        return self.scale != 1 and self.low <= t <= self.high


def guide_words(guide: Guide) -> str:
    """What guides, as lines and views name it."""
    return f"step {guide}" if isinstance(guide, int) else guide


class GuidedVelocity:
    """The velocity that samplers follow: B model rows a call, 2B while guidance applies.

    `weak_model` guides instead of the null class (autoguidance, Karras et al. 2024).
    """

    def __init__(
        self, model: Model, labels: Tensor, guidance: Guidance | None, weak_model: Model | None
    ):
        self.model = model
        self.labels = labels
        self.guidance = guidance or Guidance(scale=1)
        self.weak_model = weak_model

    def __call__(self, x: Tensor, t: float, *, guide_at: float | None = None) -> Tensor:
        """x (B, N, C) -> velocity (B, N, C) in x's dtype.

        `guide_at` is the time that decides on guidance, where it is not t.
        """
        if guide_at is None:
            guide_at = t
        # samplers add up in float64, models compute in float32
        state = x.float()
        time = torch.full((len(x),), t, device=x.device)

        # Here guidance skips the null pass: outside its interval, and at scale 1.
        if not self.guidance.applies(guide_at):
            return self.model(state, time, self.labels).to(x.dtype)

        if self.weak_model is None:
            # labels and null class in one call of 2B rows
            null = torch.full_like(self.labels, self.model.num_classes)
            labels = torch.cat([self.labels, null])
            both = self.model(state.repeat(2, 1, 1), time.repeat(2), labels)
            strong, weak = both.to(x.dtype).chunk(2)
        else:
            strong = self.model(state, time, self.labels).to(x.dtype)
            weak = self.weak_model(state, time, self.labels).to(x.dtype)
        return weak + self.guidance.scale * (strong - weak)

    def jumps(self) -> list[float]:
        """Times inside (0, 1) at which guidance begins or ends, as sampling meets them."""
        if self.guidance.scale == 1:
            return []
        ends = {self.guidance.low, self.guidance.high} - {0, 1}
        return sorted(ends, reverse=True)


# ---- sampling ----
class SampleStep(NamedTuple):
    """A point of the trajectory, after `step` steps."""

    step: int
    t: float
    x: Tensor  # (B, N, C) at time t, float64
    x0: Tensor  # the data estimate made on the way there


def sample(model: Model, noise: Tensor, labels: Tensor, **options) -> Tensor:
    """The end of the trajectory that `sample_steps` yields; it takes the same arguments.

    noise (B, N, C), labels (B,) -> latents (B, N, C), float32
    """
    *_, last = sample_steps(model, noise, labels, **options)
    return last.x.float()


@torch.no_grad()
def sample_steps(
    model: Model,
    noise: Tensor,
    labels: Tensor,
    *,
    method: Method = "euler",
    num_steps: int,
    guidance: Guidance | None = None,
    path: PathName | None = None,  # None is the model's own, linear for a model that has none
    weak_model: Model | None = None,  # guides instead of the null class
    time_shift: float | None = None,  # see `time_grid`; None is that of the model's training
    start: float = 1.0,  # the time of `noise`: below 1 it is latents on their way
    seeds: Sequence[int] | None = None,  # one a sample, for Euler-Maruyama's noise
    sde_noise: Tensor | None = None,  # or that noise itself, (num_steps - 1, B, N, C)
) -> Iterator[SampleStep]:
    """Integrate from t = `start` to 0, yielding every step.

    noise (B, N, C), labels (B,), of which `num_classes` is the null class. Raises ValueError for an
    unknown method or path, labels out of range, sizes that differ, a missing seed, and a start
    that is none.
    """
    integrate = choose(method, INTEGRATORS, "sampler")
    interpolant = choose(path or getattr(model, "trained_path", "linear"), PATHS, "path")
    check_inputs(model, noise, labels, num_steps)
    if weak_model is not None:
        check_inputs(weak_model, noise, labels, num_steps)
        paths = {getattr(net, "trained_path", None) for net in (model, weak_model)} - {None}
        if len(paths) > 1:
            raise ValueError(f"a weak_model must have the model's path: they have {sorted(paths)}")
    if guidance is not None and weak_model is None and getattr(model, "num_classes", None) == 0:
        raise ValueError(
            "an unconditional model has no labels to be guided by; it can be guided by a weak_model"
        )
    velocity = GuidedVelocity(model, labels, guidance, weak_model)
    times = time_grid(method, num_steps, shift_to_follow(model, time_shift), start)

    # many small steps are added up, so the state is float64; Apple's GPU has none
    precision = torch.float64
    if noise.device.type == "mps":
        precision = torch.float32
    x = noise.to(precision)

    if integrate is euler_maruyama:
        if sde_noise is None:
            sde_noise = _sde_noise(noise, seeds, num_steps)
        elif sde_noise.shape != (num_steps - 1, *noise.shape):
            raise ValueError(
                f"sde_noise must be {(num_steps - 1, *noise.shape)}, not {tuple(sde_noise.shape)}"
            )
        yield from euler_maruyama(velocity, x, times, interpolant, sde_noise)
    else:
        yield from integrate(velocity, x, times, interpolant)


def shift_to_follow(model: Model, time_shift: float | None) -> float:
    """`time_shift`; where that is None the one that the model was trained with, 1 for none."""
    if time_shift is None:
        time_shift = getattr(model, "trained_shift", None)
    return 1.0 if time_shift is None else time_shift


def time_grid(
    method: Method, num_steps: int, time_shift: float = 1.0, start: float = 1.0
) -> Tensor:
    """Times between steps, `start` to 0, float64 (num_steps + 1,): equal steps, then shifted.

    A `time_shift` above 1 spends more steps near the noise. Raises ValueError for one of 0 or less,
    and a start outside (0, 1] or, for Euler-Maruyama, where its noise has ended.
    """
    check_shift(time_shift)
    if not 0 < start <= 1:
        raise ValueError(f"sampling must start in (0, 1], 1 being noise, not at {start}")

    # before its shift, so that the first time is `start`; at 1 it is 1 to the last bit
    first = start / (start + time_shift * (1 - start))
    if method == "euler_maruyama":
        if first <= LAST_NOISY_TIME:
            raise ValueError(
                f"euler_maruyama adds no noise below t = {LAST_NOISY_TIME} (before a time shift),"
                f" so it cannot start at {start}: start later or take another sampler"
            )
        times = torch.linspace(first, LAST_NOISY_TIME, num_steps, dtype=torch.float64)
        times = torch.cat([times, torch.zeros(1)])
    else:
        times = torch.linspace(first, 0, num_steps + 1, dtype=torch.float64)
    # LightningDiT counts time the other way: its shift of 0.3 is 1 / 0.3 here.
    return shift_times(times, time_shift)


# ---- integrators ----
def euler(velocity: GuidedVelocity, x: Tensor, times: Tensor, path: Path) -> Iterator[SampleStep]:
    """x += v dt: one model evaluation a step, error of order dt."""
    for step, (t, after) in enumerate(zip(times[:-1], times[1:]), start=1):
        v = velocity(x, t.item())
        x0 = path.data(x, v, t)
        x = x + v * (after - t)
        yield SampleStep(step, after.item(), x, x0)


def heun(velocity: GuidedVelocity, x: Tensor, times: Tensor, path: Path) -> Iterator[SampleStep]:
    """Euler's step, then again with the mean of both ends' velocities: 2 num_steps - 1 evaluations.

    The last step is Euler's.
    """
    num_steps = len(times) - 1
    for step, (t, after) in enumerate(zip(times[:-1], times[1:]), start=1):
        v = velocity(x, t.item())
        x0 = path.data(x, v, t)
        ahead = x + v * (after - t)
        if step < num_steps:
            # One step is guided as a whole: its first time decides (as in the release).
            v = (v + velocity(ahead, after.item(), guide_at=t.item())) / 2
            ahead = x + v * (after - t)
        x = ahead
        yield SampleStep(step, after.item(), x, x0)


def euler_maruyama(
    velocity: GuidedVelocity, x: Tensor, times: Tensor, path: Path, sde_noise: Tensor
) -> Iterator[SampleStep]:
    """The reverse SDE with diffusion w(t) = 2t: dx = (v - w/2 score) dt + sqrt(w |dt|) n.

    The last step is without noise.
    """
    num_steps = len(times) - 1
    for step, (t, after) in enumerate(zip(times[:-1], times[1:]), start=1):
        v = velocity(x, t.item())
        x0 = path.data(x, v, t)
        w = 2 * t
        dt = after - t
        x = x + (v - w / 2 * path.score(x, v, t)) * dt
        if step < num_steps:
            x = x + (w * dt.abs()).sqrt() * sde_noise[step - 1].to(x)
        yield SampleStep(step, after.item(), x, x0)


def dopri5(velocity: GuidedVelocity, x: Tensor, times: Tensor, path: Path) -> Iterator[SampleStep]:
    """Adaptive Runge-Kutta of order 5 (torchdiffeq), read at `times`.

    Raises ImportError where torchdiffeq is missing.
    """
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise ImportError(
            "the dopri5 sampler needs torchdiffeq: pip install 'maetok-lab[evaluation]'"
        ) from None
    times = times.to(x)
    # It must step onto t = 0, beyond which there is no model, and onto the ends of the guidance
    # interval, where the velocity jumps.
    jumps = torch.tensor(velocity.jumps(), dtype=times.dtype, device=x.device)
    states = odeint(
        lambda t, state: velocity(state, t.item()),
        x,
        times,
        method="dopri5",
        atol=1e-7,
        rtol=1e-6,
        options={"step_t": times[-1:], "jump_t": jumps},
    )
    for step in range(1, len(times)):
        # one evaluation more a step, for the data estimate alone
        before = times[step - 1]
        x0 = path.data(states[step - 1], velocity(states[step - 1], before.item()), before)
        yield SampleStep(step, times[step].item(), states[step], x0)


INTEGRATORS = {"euler": euler, "heun": heun, "euler_maruyama": euler_maruyama, "dopri5": dopri5}


# ---- inputs ----
def check_inputs(model: Model, noise: Tensor, labels: Tensor, num_steps: int) -> None:
    """ValueError for labels, noise or a number of steps that the model cannot take."""
    if labels.shape != noise.shape[:1]:
        raise ValueError(
            f"need one label a sample, not labels {tuple(labels.shape)}"
            f" for noise {tuple(noise.shape)}"
        )
    # a model may be any function; only one that says its sizes is checked against them
    classes = getattr(model, "num_classes", None)
    if classes is not None and len(labels):
        low = int(labels.min())
        high = int(labels.max())
        if low < 0 or high > classes:
            raise ValueError(
                f"labels must be in 0 .. {classes} ({classes} is the null class),"
                f" not {low} .. {high}"
            )
    sizes = (getattr(model, "num_tokens", None), getattr(model, "latent_dim", None))
    if None not in sizes and tuple(noise.shape[1:]) != sizes:
        raise ValueError(f"noise must be (B, {sizes[0]}, {sizes[1]}), not {tuple(noise.shape)}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, not {num_steps}")


def draw_noise(
    seeds: Sequence[int], num_tokens: int, latent_dim: int, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Starting noise, one seed a sample, so that image k is the same in any batch. -> (B, N, C)"""
    rows = []
    for seed in seeds:
        # on the CPU, whose generator draws the same on every machine
        rows.append(torch.randn(num_tokens, latent_dim, generator=generator(seed, "noise")))
    return torch.stack(rows).to(device)


def _sde_noise(noise: Tensor, seeds: Sequence[int] | None, num_steps: int) -> Tensor:
    """Euler-Maruyama's noise, one seed a sample. -> (num_steps - 1, B, N, C), float64"""
    need = "euler_maruyama needs one seed a sample (seeds), or its noise itself (sde_noise)"
    if seeds is None:
        raise ValueError(f"{need}; neither came")
    if len(seeds) != len(noise):
        raise ValueError(f"{need}; {len(seeds)} seeds came for {len(noise)} samples")
    shape = (num_steps - 1, *noise.shape[1:])
    rows = []
    for seed in seeds:
        rows.append(torch.randn(shape, generator=generator(seed, "sde"), dtype=torch.float64))
    return torch.stack(rows, dim=1).to(noise.device)
