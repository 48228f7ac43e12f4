"""What made a result: code version, package versions, device, time."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = (  # those whose version can change a number
    "maetok-lab",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "accelerate",
    "safetensors",
    "scikit-learn",
)


def provenance() -> dict[str, Any]:
    """Commit of the library's checkout, versions, platform and time (UTC), as plain JSON."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        # numbers are equal bit for bit on one processor with one number of threads only
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "started": now(),
    }


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _git(*words: str) -> str | None:
    """What git prints about the library's folder; None without git or outside a checkout."""
    folder = Path(__file__).parent
    try:
        # outside a checkout git says so with its exit status; a disk that hangs must not stop a run
        result = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
