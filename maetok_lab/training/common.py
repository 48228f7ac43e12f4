"""What both trainings share: order of the data, optimizers, schedule, EMA, the guard against non-finite steps, checkpoints."""

import copy
import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from maetok_lab.rng import generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or torch's Muon for the matrices inside blocks and AdamW for the rest.

    `learning_rate` is AdamW's, used as it is (the released script multiplies by batch / 256 first). Weight decay acts on
    matrices only. `schedule` "cosine" ends at `final_fraction` of the rate; `warmup` is a share of the steps.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    muon_learning_rate: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: float = 0.02
    final_fraction: float = 0.1
    clip: float = 1.0

    def __post_init__(self):
        if not 0 <= self.warmup < 1 or self.learning_rate <= 0 or self.clip <= 0:
            raise ValueError(
                f"need warmup in [0, 1), learning_rate > 0 and clip > 0, not {self.warmup}, {self.learning_rate}, {self.clip}"
            )


class NonFiniteTraining(RuntimeError):
    """Several steps in a row had a loss that is not a number."""


def make_engine(
    batch_size: int, *, parts: int = 1, cpu: bool = False, all_weights_used: bool = True
) -> Accelerator:
    """Accelerate, whose processes each take an equal share of the global batch, in equal parts; ValueError when they cannot."""
    unused = DistributedDataParallelKwargs(find_unused_parameters=not all_weights_used)
    engine = Accelerator(cpu=cpu, kwargs_handlers=[unused])
    if batch_size % (engine.num_processes * parts):
        how = f" in {parts} parts" if parts > 1 else ""
        raise ValueError(
            f"{engine.num_processes} processes cannot share a batch of {batch_size} equally{how}"
        )
    return engine


@dataclasses.dataclass(frozen=True)
class Share:
    """A step, and which rows of its global batch this process has: all of its rows, or part `part` of `num_parts` of them."""

    engine: Accelerator
    step: int
    size: int
    part: int = 0
    num_parts: int = 1

    @property
    def rows(self) -> slice:
        """Rows of the global batch."""
        every = self.engine.num_processes
        return slice(self.engine.process_index + every * self.part, None, every * self.num_parts)

    @property
    def local(self) -> slice:
        """The same rows, counted in what this process has of the batch."""
        return slice(self.part, None, self.num_parts)

    def parts(self, count: int) -> "list[Share]":
        """This process's rows in `count` equal parts."""
        return [dataclasses.replace(self, part=part, num_parts=count) for part in range(count)]

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over processes."""
        return self.engine.reduce(value, "mean") if self.engine.num_processes > 1 else value


def mean_terms(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of every named term over a batch's equal parts."""
    return {name: torch.stack([part[name].detach() for part in parts]).mean(0) for name in parts[0]}


def learning_rate_factor(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then constant or cosine down to `final_fraction`. step in 0 .. num_steps - 1 -> factor in (0, 1]"""
    warmup = config.warmup * num_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(num_steps - warmup, 1)
    return config.final_fraction + (1 - config.final_fraction) * 0.5 * (
        1 + math.cos(math.pi * progress)
    )


def make_optimizers(
    config: OptimizerConfig, modules: Mapping[str, nn.Module]
) -> dict[str, torch.optim.Optimizer]:
    """The optimizers by name, over every trainable parameter of `modules`."""
    named = [
        (f"{m}.{n}", p)
        for m, module in modules.items()
        for n, p in module.named_parameters()
        if p.requires_grad
    ]
    muon = [
        p
        for n, p in named
        if config.name == "muon" and p.ndim == 2 and ".blocks." in n and "modulation" not in n
    ]
    in_muon = set(map(id, muon))
    rest = [(n, p) for n, p in named if id(p) not in in_muon]
    groups = [
        {"params": [p for n, p in rest if _decays(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in rest if not _decays(n, p)], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cuda", "cpu") for _, p in rest)
    groups = [group for group in groups if group["params"]]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)
    }
    if muon:
        optimizers["muon"] = torch.optim.Muon(
            muon, lr=config.muon_learning_rate, weight_decay=config.weight_decay, momentum=0.95
        )
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _decays(name: str, parameter: torch.Tensor) -> bool:
    """Weight decay on weight matrices and kernels; not on biases, norms, tokens, positions or RoPE frequencies."""
    return parameter.ndim >= 2 and name.endswith("weight")


def set_learning_rate(optimizers: Mapping[str, torch.optim.Optimizer], factor: float) -> None:
    """Every group's rate to `factor` times its initial one."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


class Ema:
    """Exponential moving average of a module's parameters; the decay warms up as min(decay, (1 + t) / (10 + t))."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self._pairs = list(self.module.parameters()), list(module.parameters())

    @torch.no_grad()
    def update(self, step: int, *, bad: torch.Tensor | None = None) -> None:
        """After training step `step` (0 is the first); not where `bad`, a () bool on the device, says so."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if bad is None:
            torch._foreach_lerp_(self._pairs[0], self._pairs[1], 1 - decay)
            return
        # lerp takes no weight from the device: the same sum written out.
        change = torch._foreach_sub(self._pairs[1], self._pairs[0])
        torch._foreach_mul_(change, torch.where(bad, 0.0, 1 - decay))
        torch._foreach_add_(self._pairs[0], change)


class Guard:
    """Keeps non-finite steps from the weights: they are skipped and counted, and `limit` in a row end the training.

    `accepts` reads the gradient norm at once. `deferred` leaves it on the device: `step` then skips there, and `settle`, at log
    time, is when the host hears of it.
    """

    def __init__(self, limit: int = 5, *, deferred: bool = False):
        self.limit, self.skipped, self.in_a_row, self.deferred = limit, 0, 0, deferred
        self._counts: torch.Tensor | None = (
            None  # skipped, in a row now, in a row at most: since the last `settle`
        )

    def step(
        self,
        optimizers: Iterable[torch.optim.Optimizer],
        emas: Iterable[Ema],
        grad_norm: torch.Tensor,
        step: int,
        terms: Mapping[str, torch.Tensor],
    ) -> None:
        """Step optimizers and averages, unless the gradient norm () is not finite."""
        if not self.deferred:
            if self.accepts(grad_norm, step, terms):
                for optimizer in optimizers:
                    optimizer.step()
                for ema in emas:
                    ema.update(step)
            return
        bad = ~grad_norm.isfinite()
        for optimizer in optimizers:
            step_unless(optimizer, bad)
        for ema in emas:
            ema.update(step, bad=bad)
        if self._counts is None:
            self._counts = torch.tensor([0, self.in_a_row, 0], device=bad.device)
        skipped, row, most = self._counts
        row = (row + 1) * bad
        self._counts = torch.stack([skipped + bad, row, torch.maximum(most, row)])

    def settle(self, step: int, terms: Mapping[str, torch.Tensor]) -> None:
        """Read what `step` counted on the device. Raises NonFiniteTraining as `accepts` does."""
        if self._counts is None:
            return
        skipped, self.in_a_row, most = self._counts.tolist()
        self.skipped, self._counts = self.skipped + skipped, None
        if most >= self.limit:
            raise self._failure(step, terms)

    def accepts(
        self, grad_norm: torch.Tensor, step: int, terms: Mapping[str, torch.Tensor]
    ) -> bool:
        """Whether the step may be taken. Raises NonFiniteTraining with the step and the terms after too many in a row."""
        if math.isfinite(grad_norm.item()):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise self._failure(step, terms)
        return False

    def _failure(self, step: int, terms: Mapping[str, torch.Tensor]) -> NonFiniteTraining:
        bad = {
            name: value.item() for name, value in terms.items() if not math.isfinite(value.item())
        }
        return NonFiniteTraining(
            f"{self.limit} steps in a row up to step {step} had no finite gradient; terms that are not finite: "
            f"{bad or 'none'}. The newest checkpoint was written before them"
        )


@torch.no_grad()
def step_unless(optimizer: torch.optim.Optimizer, bad: torch.Tensor) -> None:
    """`optimizer.step()`, which changes nothing where `bad` () is true; nothing waits for the device to say so."""
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = bad.float()  # the fused kernel's own way, made for gradient scalers
        optimizer.step()
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = [
        (p, key)
        for p in parameters
        for key, value in optimizer.state[p].items()
        if torch.is_tensor(value)
    ]
    before = (
        [p.clone() for p in parameters],
        {(id(p), key): optimizer.state[p][key].clone() for p, key in states},
    )
    optimizer.step()
    for parameter, kept in zip(parameters, before[0]):
        parameter.copy_(torch.where(bad, kept, parameter))
        for key, value in optimizer.state[parameter].items():
            if torch.is_tensor(value):
                kept = before[1].get((id(parameter), key), torch.zeros_like(value))
                value.copy_(torch.where(bad, kept, value))


@functools.lru_cache(maxsize=4)
def epoch_order(
    seed: int, epoch: int, count: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The order in which epoch `epoch` visits `count` items: drawn on the CPU, alike everywhere, and kept on `device`."""
    return torch.randperm(count, generator=generator(seed, "order", epoch)).to(device)


def batch_indices(
    seed: int, step: int, batch_size: int, count: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Which items the global batch of `step` holds: consecutive places in the orders of consecutive epochs. -> (batch_size,)"""
    place, end, parts = step * batch_size, (step + 1) * batch_size, []
    while place < end:
        epoch, first = divmod(place, count)
        parts.append(epoch_order(seed, epoch, count, device)[first : first + end - place])
        place += len(parts[-1])
    return torch.cat(parts)


def optimizer_tensors(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """All optimizer state as flat tensors "adamw.3.exp_avg", for a checkpoint."""
    tensors = {}
    for name, optimizer in optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"{name}.{index}.{key}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(
    optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, torch.Tensor]
) -> None:
    """The inverse of `optimizer_tensors`; learning rates are set again at each step."""
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Any]] = {}
        for path, value in tensors.items():
            owner, index, key = path.split(".", 2)
            if owner == name:
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )


def grad_parameters(optimizers: Iterable[torch.optim.Optimizer]) -> list[nn.Parameter]:
    """Every parameter that some optimizer moves."""
    return [
        p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]
    ]
