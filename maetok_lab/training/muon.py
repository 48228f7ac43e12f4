"""Muon (Jordan et al. 2024): momentum, made orthogonal, for the matrices inside blocks.

torch's own takes matrix after matrix; here those of one shape are multiplied together, and the
stacks are shared among a CPU's cores. Step, rates and the names in checkpoints are torch's.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Coefficients of the quintic that drives all singular values towards 1 (Jordan's), and how often.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
STACK = 4  # matrices at most in one stack, so that there is something to share

Spread = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]


def one_by_one(work: Callable[[Any], Any], parts: Iterable[Any]) -> list[Any]:
    """`[work(part) for part in parts]`."""
    return [work(part) for part in parts]


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
    """Steps by the orthogonalised Nesterov momentum of each matrix, times `lr`.

    A tall matrix moves sqrt(height / width) times as far. Weight decay is decoupled. Where
    `found_inf` () is above 0 a step changes nothing, as in torch's fused optimizers.
    """

    def __init__(
        self, parameters: list[nn.Parameter], *, lr: float, weight_decay: float, momentum: float
    ):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "fused": True}
        super().__init__(parameters, defaults)
        self.found_inf: Tensor | None = None
        self.spread: Spread = one_by_one  # how stacks are worked on; `Cores.map` for all at once

    @torch.no_grad()
    def step(self) -> None:
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
