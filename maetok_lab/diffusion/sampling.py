"""Noise to latents: Euler, Heun, Euler-Maruyama and dopri5 under one call, with guidance that computes nothing in vain."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch

from maetok_lab.config import choose
from maetok_lab.diffusion.path import PATHS, Path, PathName
from maetok_lab.rng import generator

Method = Literal["euler", "heun", "euler_maruyama", "dopri5"]
Model = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
LAST_NOISY_TIME = 0.04  # the release's Euler-Maruyama goes from here to 0 in one step without noise


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance on all channels while low <= t <= high: v = v_null + scale * (v_label - v_null).

    t = 1 is noise, so the paper's [0, 0.75] leaves the noisiest quarter unguided. Outside the interval, and at scale 1,
    the null pass is not computed.
    """

    scale: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"guidance needs 0 <= low <= high <= 1, not low {self.low}, high {self.high}"
            )

    def applies(self, t: float) -> bool:
        return self.scale != 1 and self.low <= t <= self.high


class SampleStep(NamedTuple):
    """A point of the trajectory: after `step` steps at time `t`, the state and the data estimate made on the way there."""

    step: int
    t: float
    x: torch.Tensor
    x0: torch.Tensor


def sample(model: Model, noise: torch.Tensor, labels: torch.Tensor, **options) -> torch.Tensor:
    """The end of the trajectory that `sample_steps` (same arguments) yields. noise (B, N, C) -> latents (B, N, C) float32"""
    *_, last = sample_steps(model, noise, labels, **options)
    return last.x.float()


@torch.no_grad()
def sample_steps(
    model: Model,
    noise: torch.Tensor,
    labels: torch.Tensor,
    *,
    method: Method = "euler",
    num_steps: int,
    guidance: Guidance | None = None,
    path: PathName | None = None,
    weak_model: Model | None = None,
    time_shift: float = 1.0,
    seeds: Sequence[int] | None = None,
    sde_noise: torch.Tensor | None = None,
) -> Iterator[SampleStep]:
    """Integrate from t = 1 to 0, yielding every step. The state is float64, the model sees float32.

    noise (B, N, C), labels (B,). `path` is the model's own if it is not given (linear for a model that has none).
    `weak_model` guides instead of the null class (autoguidance, Karras et al. 2024). `time_shift`: see `time_grid`.
    Euler-Maruyama draws from one seed a sample (`seeds`), or takes `sde_noise` (num_steps - 1, B, N, C). The null label is
    a label too. Raises ValueError for labels out of range and sizes that differ.
    """
    integrate = choose(method, INTEGRATORS, "sampler")
    interpolant = choose(path or getattr(model, "trained_path", "linear"), PATHS, "path")
    check_inputs(model, noise, labels, num_steps)
    if guidance is not None and weak_model is None and getattr(model, "num_classes", None) == 0:
        raise ValueError(
            "an unconditional model has no labels to be guided by; it can be guided by a weak_model"
        )
    times = time_grid(method, num_steps, time_shift)
    drive = Drive(model, labels, guidance, weak_model)
    precise = torch.float32 if noise.device.type == "mps" else torch.float64
    x = noise.to(precise)
    if integrate is euler_maruyama:
        if sde_noise is None:
            sde_noise = _sde_noise(noise, seeds, num_steps)
        elif sde_noise.shape != (num_steps - 1, *noise.shape):
            raise ValueError(
                f"sde_noise must be {(num_steps - 1, *noise.shape)}, not {tuple(sde_noise.shape)}"
            )
        yield from euler_maruyama(drive, x, times, interpolant, sde_noise)
    else:
        yield from integrate(drive, x, times, interpolant)


def time_grid(method: Method, num_steps: int, time_shift: float = 1.0) -> torch.Tensor:
    """The times between steps, from 1 to 0, float64 (num_steps + 1,): equal steps, then t -> s t / (1 + (s - 1) t).

    A `time_shift` s above 1 spends more steps near the noise (Esser et al. 2024, equation 23, with t = 1 noise as here;
    LightningDiT's shift of 0.3 counts time the other way and is 1 / 0.3 here).
    """
    if time_shift <= 0:
        raise ValueError(f"time_shift must be above 0 (1 is none), not {time_shift}")
    if method == "euler_maruyama":
        times = torch.cat(
            [torch.linspace(1, LAST_NOISY_TIME, num_steps, dtype=torch.float64), torch.zeros(1)]
        )
    else:
        times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    return time_shift * times / (1 + (time_shift - 1) * times)


class Drive:
    """The guided velocity at (x, t): B model rows a call, 2B while guidance applies."""

    def __init__(
        self,
        model: Model,
        labels: torch.Tensor,
        guidance: Guidance | None,
        weak_model: Model | None,
    ):
        self.model, self.labels, self.guidance, self.weak_model = (
            model,
            labels,
            guidance,
            weak_model,
        )

    def __call__(self, x: torch.Tensor, t: float, *, guide_at: float | None = None) -> torch.Tensor:
        """x (B, N, C) -> velocity (B, N, C) in x's dtype; `guide_at` is the time that decides on guidance, if not t."""
        state, labels = x.float(), self.labels
        time = torch.full((len(x),), t, device=x.device)
        if self.guidance is None or not self.guidance.applies(t if guide_at is None else guide_at):
            return self.model(state, time, labels).to(x.dtype)
        if self.weak_model is not None:
            strong, weak = (
                self.model(state, time, labels).to(x.dtype),
                self.weak_model(state, time, labels).to(x.dtype),
            )
        else:
            null = torch.full_like(labels, self.model.num_classes)
            both = self.model(state.repeat(2, 1, 1), time.repeat(2), torch.cat([labels, null]))
            strong, weak = both.to(x.dtype).chunk(2)
        return weak + self.guidance.scale * (strong - weak)

    def jumps(self) -> list[float]:
        """Times inside (0, 1) at which guidance begins or ends, from late to early as sampling meets them."""
        if self.guidance is None or self.guidance.scale == 1:
            return []
        return sorted(
            {t for t in (self.guidance.low, self.guidance.high) if 0 < t < 1}, reverse=True
        )


def euler(drive: Drive, x: torch.Tensor, times: torch.Tensor, path: Path) -> Iterator[SampleStep]:
    """x += v dt: one model evaluation a step, error of order dt."""
    for step, (t, after) in enumerate(zip(times[:-1], times[1:]), start=1):
        v = drive(x, t.item())
        x0 = path.data(x, v, t)
        x = x + v * (after - t)
        yield SampleStep(step, after.item(), x, x0)


def heun(drive: Drive, x: torch.Tensor, times: torch.Tensor, path: Path) -> Iterator[SampleStep]:
    """Euler's step corrected with the mean of both ends' velocities, but for the last step: 2 num_steps - 1 evaluations."""
    num_steps = len(times) - 1
    for step, (t, after) in enumerate(zip(times[:-1], times[1:]), start=1):
        v = drive(x, t.item())
        x0 = path.data(x, v, t)
        ahead = x + v * (after - t)
        if step < num_steps:
            # One step is guided as a whole: its first time decides (as in the release).
            v = (v + drive(ahead, after.item(), guide_at=t.item())) / 2
            ahead = x + v * (after - t)
        x = ahead
        yield SampleStep(step, after.item(), x, x0)


def euler_maruyama(
    drive: Drive, x: torch.Tensor, times: torch.Tensor, path: Path, sde_noise: torch.Tensor
) -> Iterator[SampleStep]:
    """The reverse SDE with diffusion w(t) = 2t: dx = (v - w/2 score) dt + sqrt(w |dt|) n, without noise in the last step."""
    num_steps = len(times) - 1
    for step, (t, after) in enumerate(zip(times[:-1], times[1:]), start=1):
        v = drive(x, t.item())
        x0 = path.data(x, v, t)
        w, dt = 2 * t, after - t
        x = x + (v - w / 2 * path.score(x, v, t)) * dt
        if step < num_steps:
            x = x + (w * dt.abs()).sqrt() * sde_noise[step - 1].to(x)
        yield SampleStep(step, after.item(), x, x0)


def dopri5(drive: Drive, x: torch.Tensor, times: torch.Tensor, path: Path) -> Iterator[SampleStep]:
    """Adaptive Runge-Kutta of order 5 (torchdiffeq), tolerances 1e-7 absolute and 1e-6 relative; read at `times`.

    It steps onto t = 0 (beyond it there is no model) and onto the ends of the guidance interval, where the velocity jumps.
    """
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise ImportError(
            "the dopri5 sampler needs torchdiffeq: pip install 'maetok-lab[evaluation]'"
        ) from None
    times = times.to(x)
    stops = {
        "step_t": times[-1:],
        "jump_t": torch.tensor(drive.jumps(), dtype=times.dtype, device=x.device),
    }
    states = odeint(
        lambda t, state: drive(state, t.item()),
        x,
        times,
        method="dopri5",
        atol=1e-7,
        rtol=1e-6,
        options=stops,
    )
    for step in range(1, len(times)):
        before = times[step - 1]
        x0 = path.data(states[step - 1], drive(states[step - 1], before.item()), before)
        yield SampleStep(step, times[step].item(), states[step], x0)


INTEGRATORS = {"euler": euler, "heun": heun, "euler_maruyama": euler_maruyama, "dopri5": dopri5}


def check_inputs(model: Model, noise: torch.Tensor, labels: torch.Tensor, num_steps: int) -> None:
    """One line for labels, noise or step counts that the model cannot take."""
    classes = getattr(model, "num_classes", None)
    if labels.shape != noise.shape[:1]:
        raise ValueError(
            f"need one label a sample, not labels {tuple(labels.shape)} for noise {tuple(noise.shape)}"
        )
    if (
        classes is not None
        and len(labels)
        and not 0 <= int(labels.min()) <= int(labels.max()) <= classes
    ):
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(
            f"labels must be in 0 .. {classes} ({classes} is the null class), not {low} .. {high}"
        )
    sizes = (getattr(model, "num_tokens", None), getattr(model, "latent_dim", None))
    if None not in sizes and tuple(noise.shape[1:]) != sizes:
        raise ValueError(f"noise must be (B, {sizes[0]}, {sizes[1]}), not {tuple(noise.shape)}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, not {num_steps}")


def draw_noise(
    seeds: Sequence[int], num_tokens: int, latent_dim: int, *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Starting noise, one seed a sample and drawn on the CPU, so that image k is the same in any batch. -> (B, N, C)"""
    rows = [
        torch.randn(num_tokens, latent_dim, generator=generator(seed, "noise")) for seed in seeds
    ]
    return torch.stack(rows).to(device)


def _sde_noise(noise: torch.Tensor, seeds: Sequence[int] | None, num_steps: int) -> torch.Tensor:
    if seeds is None or len(seeds) != len(noise):
        came = (
            "neither came" if seeds is None else f"{len(seeds)} seeds came for {len(noise)} samples"
        )
        raise ValueError(
            f"euler_maruyama needs one seed a sample (seeds), or its noise itself (sde_noise); {came}"
        )
    shape = (num_steps - 1, *noise.shape[1:])
    rows = [
        torch.randn(shape, generator=generator(seed, "sde"), dtype=torch.float64) for seed in seeds
    ]
    return torch.stack(rows, dim=1).to(noise.device)
