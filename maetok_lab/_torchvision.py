"""Make `import torchvision` work beside a CPU torch, before anything imports torchvision or timm.

The package index has only a CUDA build of torchvision. Beside a CPU torch its compiled part cannot
load; torchvision tolerates that, but then registers fakes for two operators nobody declared, and
dies. Declaring their schemas is enough: models, transforms and make_grid run; only the compiled
operators (nms, image decoders) stay unavailable.
"""

import functools
import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache  # also keeps the Library alive: the schemas vanish with it
def make_importable() -> torch.library.Library | None:
    """Declare torchvision's `nms` and `qnms` where its compiled part cannot; else do nothing."""
    spec = importlib.util.find_spec("torchvision")
    on_gpu = torch.version.cuda or torch.version.hip
    if on_gpu or spec is None or hasattr(torch.ops.torchvision, "nms"):
        return None
    # a build for the CPU has a part that loads, and declares them itself
    try:
        for path in sorted(Path(spec.origin).parent.glob("_C*.so")):
            torch.ops.load_library(str(path))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(name + _SCHEMA)
        return library
    return None
