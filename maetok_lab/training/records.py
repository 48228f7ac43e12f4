"""What a training loop yields after each step, and the way to ask it to stop."""

import dataclasses
import threading


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What a training loop yields after each step; `losses` is filled at log time only, `picture` when one was written."""

    step: int
    num_steps: int
    images: int
    losses: dict[str, float] | None = None
    picture: str | None = None
    stopping: threading.Event = dataclasses.field(
        default_factory=threading.Event, compare=False, repr=False
    )

    def stop(self) -> None:
        """Ask the training, from any thread, to end after this step with a checkpoint; called again, it goes on from there.

        Of several processes none would know of the other's wish, so there it changes nothing.
        """
        self.stopping.set()

    def stops(self, num_processes: int) -> bool:
        """Whether the loop ends here, before its last step."""
        return self.stopping.is_set() and num_processes == 1 and self.step < self.num_steps
