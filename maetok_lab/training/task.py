"""What the training loop asks of a training (config and task), and what it gives after a step."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from maetok_lab.runs import Checkpoint, Run
from maetok_lab.training.optim import Ema, OptimizerConfig, Spread
from maetok_lab.training.order import Share

Terms = dict[str, torch.Tensor]  # by name: () each, or (b,) where every item has its own
StopCondition = Callable[[Run], dict[str, float] | None]


class TrainingConfig(Protocol):
    """What the loop reads of any training's config."""

    num_steps: int
    batch_size: int
    accumulate: int | Literal["fit"]
    seed: int
    optimizer: OptimizerConfig
    recompute: bool
    compile: bool | Literal["auto"]
    log_every: int
    save_every: int
    save_minutes: float
    picture_every: int


def check_steps(config: TrainingConfig) -> None:
    """ValueError for steps and batches that no training can have."""
    if config.num_steps < 1 or config.batch_size < 1:
        raise ValueError(
            "num_steps and batch_size must be at least 1, "
            f"not {config.num_steps} and {config.batch_size}"
        )
    if config.save_minutes <= 0:
        raise ValueError(f"save_minutes must be above 0, not {config.save_minutes}")
    if config.accumulate == "fit":
        return
    if config.accumulate < 1 or config.batch_size % config.accumulate:
        raise ValueError(
            f"a batch of {config.batch_size} cannot be split into "
            f"accumulate={config.accumulate} equal parts"
        )


class Task(Protocol):
    """What is trained. Everything here but `config` and `check` is there after `build`."""

    config: TrainingConfig
    module: nn.Module  # one forward pass for all that is trained, so that DDP sees one
    trained: dict[str, nn.Module]  # what the optimizers move, by name
    model: nn.Module  # the weights that checkpoints and averages are of
    ema_decays: dict[str, float]  # of each average, by the name of its group in checkpoints
    every_weight_has_a_gradient: bool  # else DDP has to look for those that have none
    parts_are_independent: bool  # no part of a batch draws or keeps anything that another would

    def check(self) -> None:
        """Raise ValueError where config and data do not belong together."""

    def build(self, device: torch.device) -> None:
        """Make everything that is trained, with fresh weights."""

    def compile(self) -> None:
        """Let torch compile what is worth it, in place: names in checkpoints stay."""

    def batches(self, share: Share) -> Iterator[Any]:
        """One batch a step, of this process's rows, from `share.step` on."""

    def before_step(self, batch: Any, parts: list[Share], spread: Spread) -> None:
        """Put into a batch what its parts need of all of it; `spread` maps over parts at once."""

    def loss(self, forward: nn.Module, batch: Any, part: Share) -> tuple[torch.Tensor, Terms]:
        """What one part of a batch is trained on, (), and its named terms."""

    def after_step(self, batch: Any, share: Share, factor: float) -> Terms:
        """Train what is trained beside, at `factor` of its learning rate. -> its named terms"""

    def settle(self, step: int, terms: Terms) -> None:
        """Let guards of its own read what they counted on the device."""

    def numbers(self, terms: Terms, engine: Accelerator) -> dict[str, float]:
        """What is logged of a step, over all processes."""

    def picture(self, emas: Mapping[str, Ema], step: int, run: Run) -> str | None:
        """Show the averages at work. -> the path of the picture, None where there is none"""

    def checkpoint(self, emas: Mapping[str, Ema]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Groups of tensors, and facts, without those of the loop. RuntimeError if unsound."""

    def load(self, checkpoint: Checkpoint) -> None:
        """The inverse of `checkpoint`."""

    def summary(self, emas: Mapping[str, Ema], step: int, run: Run) -> dict[str, float]:
        """Final numbers."""


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What a training yields after each step, and the way to ask it to stop."""

    step: int  # the first is 1
    num_steps: int
    images: int  # seen so far
    losses: dict[str, float] | None = None  # at log time only
    picture: str | None = None  # its path, when one was written
    stopping: threading.Event = dataclasses.field(
        default_factory=threading.Event, compare=False, repr=False
    )

    def stop(self) -> None:
        """Ask the training, from any thread, to end after this step with a checkpoint.

        Called again, it goes on from there. Of several processes all end where one is asked to.
        """
        self.stopping.set()
