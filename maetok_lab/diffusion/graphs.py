"""CUDA graphs for sampling: a model's kernels are recorded once, and replayed at every step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

WARM_UPS = 3  # passes before the recording, in which libraries choose their kernels


class _Recording(NamedTuple):
    graph: Any  # torch.cuda.CUDAGraph
    inputs: list[Tensor]  # what it reads
    output: Tensor  # where it writes


class Graphed:
    """A model in inference mode, for samples on a CUDA GPU; elsewhere it is only called.

    At small batches it takes longer to launch the hundreds of kernels of a pass than to run them.
    The kernels are the same, and so are the bits.
    """

    def __init__(self, model: Callable[[Tensor, Tensor, Tensor], Tensor]):
        self.model = model
        self._recordings: dict[torch.Size, _Recording] = {}

    def __getattr__(self, name: str) -> Any:
        # sizes, classes and path, as samplers ask for them
        return getattr(self.model, name)

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x_t (B, N, C), t (B,), labels (B,) -> velocity (B, N, C)"""
        if x_t.device.type != "cuda":
            return self.model(x_t, t, labels)
        if x_t.shape not in self._recordings:
            self._recordings[x_t.shape] = self._record([x_t, t, labels])
        graph, inputs, output = self._recordings[x_t.shape]
        for place, value in zip(inputs, (x_t, t, labels)):
            place.copy_(value)
        graph.replay()
        # the next replay writes to the same place
        return output.clone()

    def _record(self, values: list[Tensor]) -> _Recording:
        inputs = [value.clone() for value in values]
        # on a stream of its own, as recording asks for
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.model(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # of this thread alone: threads that pin memory or watch NCCL go on meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = self.model(*inputs)
        return _Recording(graph, inputs, output)
