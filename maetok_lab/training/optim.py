"""What moves the weights: optimizers, their rate, EMA, and the guard that skips bad steps."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

Optimizers = Mapping[str, torch.optim.Optimizer]
# Coefficients of the quintic that drives all singular values towards 1 (Jordan's), and how often.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
STACK = 4  # matrices at most in one stack, so that there is something to share

Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon for the matrices inside blocks and AdamW for everything else."""

    name: Literal["adamw", "muon"] = "adamw"  # of the matrices' optimizer
    learning_rate: float = 1e-4  # AdamW's, as it is (the release multiplies by batch / 256 first)
    muon_learning_rate: float = 0.02  # of the matrices inside blocks
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW's
    weight_decay: float = 1e-4  # on matrices and kernels only
    schedule: Literal["constant", "cosine"] = "cosine"  # after the warm-up
    warmup: float = 0.02  # share of the steps in which the rate rises linearly
    final_fraction: float = 0.1  # of the rate, where the cosine ends
    clip: float = 1.0  # largest norm of all gradients together

    def __post_init__(self):
        if not 0 <= self.warmup < 1 or self.learning_rate <= 0 or self.clip <= 0:
            raise ValueError(
                "need warmup in [0, 1), learning_rate > 0 and clip > 0, "
                f"not {self.warmup}, {self.learning_rate}, {self.clip}"
            )


def learning_rate_factor(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then constant or cosine. step in 0 .. num_steps - 1 -> factor in (0, 1]"""
    warmup = config.warmup * num_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(num_steps - warmup, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_fraction + (1 - config.final_fraction) * cosine


def make_optimizers(
    config: OptimizerConfig, modules: Mapping[str, nn.Module]
) -> dict[str, torch.optim.Optimizer]:
    """The optimizers by name, over every trainable parameter of `modules`."""
    # Muon takes the matrices inside blocks, but not those that make adaptive norms.
    muon, decayed, free = [], [], []
    for module_name, module in modules.items():
        for name, parameter in module.named_parameters(prefix=module_name):
            if not parameter.requires_grad:
                continue
            in_block = ".blocks." in name and "modulation" not in name
            if config.name == "muon" and parameter.ndim == 2 and in_block:
                muon.append(parameter)
            elif parameter.ndim >= 2 and name.endswith("weight"):
                decayed.append(parameter)
            else:  # biases, norms, tokens, positions, RoPE frequencies
                free.append(parameter)

    groups = []
    for parameters, weight_decay in ((decayed, config.weight_decay), (free, 0.0)):
        if parameters:
            groups.append({"params": parameters, "weight_decay": weight_decay})
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    }
    if muon:
        optimizers["muon"] = Muon(
            muon, lr=config.muon_learning_rate, weight_decay=config.weight_decay, momentum=0.95
        )
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: Optimizers, factor: float) -> None:
    """Every group's rate to `factor` times its initial one."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def moved_parameters(optimizers: Iterable[torch.optim.Optimizer]) -> list[nn.Parameter]:
    """Every parameter that some optimizer moves."""
    parameters = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            parameters += group["params"]
    return parameters


def optimizer_tensors(optimizers: Optimizers) -> dict[str, torch.Tensor]:
    """All optimizer state as flat tensors "adamw.3.exp_avg", for a checkpoint."""
    tensors = {}
    for name, optimizer in optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"{name}.{index}.{key}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(optimizers: Optimizers, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`; learning rates are set again at each step."""
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Any]] = {}
        for path, value in tensors.items():
            owner, index, key = path.split(".", 2)
            if owner == name:
                state.setdefault(int(index), {})[key] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest matrices with orthogonal rows, roughly: singular values in 0.7 .. 1.2.

    (k, m, n) with m <= n, of any scale -> (k, m, n) bf16
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Steps by the orthogonalised Nesterov momentum of each matrix, times `lr` (Jordan 2024).

    torch's own takes matrix after matrix; here those of one shape are multiplied together, and
    stacks are shared among a CPU's cores. Rates and names in checkpoints are torch's. Where
    `found_inf` () is above 0 a step changes nothing, as in torch's fused optimizers.
    """

    # All singular values become about one: those, too, that are rounding alone. Several processes
    # and parts round a gradient otherwise, and bf16 makes much of it: after 100 steps at preset
    # `test` losses differ by up to 2e-3 and weights by 5 % of their way (AdamW: 2e-7 and 4e-7;
    # this in float32: 2e-7 and 2e-5). `benchmarks/processes.py` measures it.

    def __init__(
        self, parameters: list[nn.Parameter], *, lr: float, weight_decay: float, momentum: float
    ):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(parameters, defaults)
        self.found_inf: Tensor | None = None
        self.spread: Spread = map  # how stacks are worked on; `Cores.map` for all at once

    @torch.no_grad()
    def step(self) -> None:
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            momenta = []
            for parameter in parameters:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momenta.append(state["momentum_buffer"])

            # A step to be skipped takes its momentum for its gradient, and goes nowhere.
            goes = 1.0
            if self.found_inf is not None:
                skips = self.found_inf > 0
                gradients = [torch.where(skips, m, g) for m, g in zip(momenta, gradients)]
                goes = (~skips).float()
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            for parameter, update in zip(parameters, self._orthogonalised(updates)):
                height, width = parameter.shape
                rate = group["lr"] * max(1, height / width) ** 0.5
                parameter.mul_(1 - goes * group["lr"] * group["weight_decay"])
                parameter.sub_(update * (goes * rate))

    def _orthogonalised(self, updates: list[Tensor]) -> list[Tensor]:
        """Each update made orthogonal, those of one shape together."""
        # lying matrices: the products are of the shorter side
        shapes: dict[torch.Size, list[int]] = {}
        lying = [update if update.shape[0] <= update.shape[1] else update.mT for update in updates]
        for index, matrix in enumerate(lying):
            shapes.setdefault(matrix.shape, []).append(index)
        stacks = []
        for indices in shapes.values():
            stacks += [indices[i : i + STACK] for i in range(0, len(indices), STACK)]

        results = self.spread(
            lambda stack: orthogonalise(torch.stack([lying[index] for index in stack])), stacks
        )
        done: dict[int, Tensor] = {}
        for stack, matrices in zip(stacks, results):
            done |= dict(zip(stack, matrices))
        orthogonal = []
        for index, update in enumerate(updates):
            matrix = done[index].to(update.dtype)
            orthogonal.append(matrix if matrix.shape == update.shape else matrix.mT)
        return orthogonal


class Ema:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self._averages = list(self.module.parameters())
        self._weights = list(module.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After training step `step` (0 is the first)."""
        # At first the average follows closely: it would else be of the initial weights for long.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)


class NonFiniteTraining(RuntimeError):
    """Several steps in a row had no finite gradient."""


class Guard:
    """Keeps steps without a finite gradient from the weights: they are skipped and counted.

    It decides on the device, so that no step waits for the host to read a number; `settle` is when
    the host hears of it, and where `limit` skipped steps in a row end the training.
    """

    def __init__(self, limit: int = 5):
        self.limit = limit
        self.skipped = 0  # steps, up to the last `settle`
        self.in_a_row = 0
        # On the device: skipped, in a row now, most in a row; since the last `settle`.
        self._counts: torch.Tensor | None = None

    def step(
        self, optimizers: Iterable[torch.optim.Optimizer], grad_norm: torch.Tensor
    ) -> torch.Tensor:
        """Step the optimizers, unless the gradient norm () is not finite. -> () bool: skipped"""
        bad = ~grad_norm.isfinite()
        for optimizer in optimizers:
            step_unless(optimizer, bad)
        if self._counts is None:
            self._counts = torch.tensor([0, self.in_a_row, 0], device=bad.device)
        skipped, in_a_row, longest = self._counts
        in_a_row = (in_a_row + 1) * bad
        self._counts = torch.stack([skipped + bad, in_a_row, torch.maximum(longest, in_a_row)])
        return bad

    def settle(self, step: int, terms: Mapping[str, torch.Tensor]) -> None:
        """Read the counts off the device, after step `step` (1 is the first) with these terms.

        Raises NonFiniteTraining after too many skipped steps in a row.
        """
        if self._counts is None:
            return
        skipped, self.in_a_row, longest = self._counts.tolist()
        self._counts = None
        self.skipped += skipped
        if longest >= self.limit:
            means = {name: value.mean().item() for name, value in terms.items()}
            bad = {name: value for name, value in means.items() if not math.isfinite(value)}
            raise NonFiniteTraining(
                f"{longest} steps in a row, not later than step {step}, had no finite gradient; "
                f"terms of that step that are not finite: {bad or 'none'}. "
                "The newest checkpoint was written before them"
            )


def step_unless(optimizer: torch.optim.Optimizer, bad: torch.Tensor) -> None:
    """`optimizer.step()`, which changes nothing where `bad` () is true."""
    optimizer.found_inf = bad.float()  # the fused kernels' own way, made for gradient scalers
    optimizer.step()
