"""Models to images, the same whatever the batch size and the number of processes."""

from maetok_lab.lazy import lazy_names

_NAMES, __getattr__, __dir__ = lazy_names(
    __name__, {"images": "generate reconstruct", "trajectories": "path_numbers trajectory_shape"}
)
