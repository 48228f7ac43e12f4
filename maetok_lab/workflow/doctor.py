"""Whether this machine can do the work: one check after the other, each with a plain verdict and what to do."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torchvision
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from maetok_lab.data.images import open_images
from maetok_lab.device import describe, has_fast_bf16, physical_cores, pick_device, pick_precision
from maetok_lab.runs import Run, runs_root
from maetok_lab.workflow import collective

FREE_GB = (1.0, 10.0)  # below the first nothing can be trained, below the second only small models
DATA_SECONDS = 1.0
COLLECTIVE_SECONDS = 120
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a check found; `advice` says what to do when it is not "good"."""

    check: str
    verdict: Literal["good", "fair", "bad"]
    told: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:<5} {self.check}: {self.told}" + (
            f"\n      -> {self.advice}" if self.advice else ""
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examination:
    """What to examine: where runs go, which images to read and at which size, which device."""

    runs: str | None = None
    source: str = "emoji"
    image_size: int = 32
    device: str = "auto"


def examine(what: Examination) -> Iterator[Verdict]:
    """Every check in turn; one that raises is a "bad" verdict with what was raised, and the rest goes on."""
    for name, check in CHECKS.items():
        try:
            yield check(what)
        except Exception as problem:
            yield Verdict(
                name,
                "bad",
                f"{type(problem).__name__}: {problem}",
                "see the message; the other checks go on",
            )


def check_python(what: Examination) -> Verdict:
    """The interpreter, and whether torch has a thread for each core it may use and no more."""
    cores, threads = physical_cores(), torch.get_num_threads()
    told = f"{platform.python_version()} at {sys.executable}, {threads} threads on {cores} cores"
    if threads > cores:
        return Verdict(
            "python", "fair", told, f"threads wait for each other: set OMP_NUM_THREADS={cores}"
        )
    return Verdict("python", "good", told)


def check_torch(what: Examination) -> Verdict:
    """Versions of torch and torchvision, and whether torch was built for a GPU that is there."""
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    told = f"torch {torch.__version__} for {built}, torchvision {torchvision.__version__}"
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        return Verdict(
            "torch",
            "bad",
            told + ", but no GPU can be used",
            "install a torch built for this machine's CUDA driver",
        )
    return Verdict("torch", "good", told)


def check_device(what: Examination) -> Verdict:
    """What would be trained on, in which precision, and how much memory is free there."""
    device = pick_device(what.device)
    told = describe(device, pick_precision(device))
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        told += f", {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        if free < 0.8 * total:
            return Verdict(
                "device", "fair", told, "another process holds memory there: nvidia-smi names it"
            )
    if not has_fast_bf16(device):
        return Verdict("device", "fair", told, "trainings run in fp32, at about half the speed")
    return Verdict("device", "good", told)


def check_kernels(what: Examination) -> Verdict:
    """Which fused attention kernels work here, compared with the plain computation."""
    device = pick_device(what.device)
    dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    q = (
        torch.sin(torch.arange(2 * 4 * 64 * 32, device=device, dtype=torch.float32))
        .view(2, 4, 64, 32)
        .to(dtype)
    )
    with sdpa_kernel(SDPBackend.MATH):
        wanted = scaled_dot_product_attention(q, q, q)
    right, wrong = [], []
    for backend in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
    ):
        try:
            with sdpa_kernel(backend):
                difference = (scaled_dot_product_attention(q, q, q) - wanted).abs().max().item()
        except RuntimeError:  # how torch says that a kernel is not there
            continue
        (right if difference < 0.05 else wrong).append(backend.name.lower())
    told = f"fused attention in {str(dtype).removeprefix('torch.')}: {', '.join(right) or 'none'}"
    if wrong:
        return Verdict(
            "kernels",
            "bad",
            f"{told}; wrong results from {wrong}",
            "update torch, or the GPU's driver",
        )
    return Verdict(
        "kernels",
        "good" if right else "fair",
        told,
        "" if right else "attention is slow: update torch",
    )


def check_disk(what: Examination) -> Verdict:
    """Free space where runs go."""
    place = runs_root(what.runs).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    told = f"{free:.1f} GB free at {place}"
    if free < FREE_GB[0]:
        return Verdict(
            "disk",
            "bad",
            told,
            "free some space: python -m maetok_lab prune, or choose another --runs folder",
        )
    if free < FREE_GB[1]:
        return Verdict(
            "disk",
            "fair",
            told,
            "enough for small models; python -m maetok_lab prune frees old checkpoints",
        )
    return Verdict("disk", "good", told)


def check_data(what: Examination) -> Verdict:
    """How many images a second the source gives to one process."""
    images = open_images(what.source, split="train", image_size=what.image_size)
    images.batch(torch.arange(min(BATCH, len(images))))  # the first reading may fill a cache
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < DATA_SECONDS:
        chosen = (torch.arange(BATCH) + done) % len(images)
        images.batch(chosen)
        done += BATCH
    rate = done / (time.perf_counter() - started)
    told = f"{len(images)} training images of {what.source}, {rate:,.0f} a second in one process at {what.image_size} px"
    if rate < 100:
        return Verdict(
            "data",
            "fair",
            told,
            "cache the latents once (write_latents), or raise `workers`; a faster disk helps",
        )
    return Verdict("data", "good", told)


def check_collective(what: Examination) -> Verdict:
    """A sum across processes: one a GPU where there are several, else two on the CPU."""
    count = max(2, torch.cuda.device_count())
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(count),
        collective.__file__,
    ]
    hidden = ["env", "CUDA_VISIBLE_DEVICES="] if torch.cuda.device_count() < 2 else []
    done = subprocess.run(
        [*hidden, *command], capture_output=True, text=True, timeout=COLLECTIVE_SECONDS, check=False
    )
    found = re.search(r"\{.*\}", done.stdout)
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        return Verdict(
            "collective",
            "bad",
            f"{count} processes failed: {last}",
            "train in one process until this works",
        )
    answer = json.loads(found[0])
    told = f"{answer['processes']} processes over {answer['backend']}, {answer['bytes_per_second'] / 1e6:,.0f} MB/s"
    if not answer["right"]:
        return Verdict(
            "collective",
            "bad",
            told + ", and the sum is wrong",
            "train in one process until this works",
        )
    return Verdict("collective", "good", told)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """The config of the run that `check_run` makes and removes."""

    size: int = 1000


def check_run(what: Examination) -> Verdict:
    """Write a run with a checkpoint, read it back, and remove it."""
    root, name = runs_root(what.runs), f"doctor-{os.getpid()}-{secrets.token_hex(4)}"
    there = root.exists()
    tensor = torch.arange(Probe().size)
    try:
        with Run.open(name, Probe(), root=root) as run:
            run.save_checkpoint(1, {"model": {"w": tensor}}, {})
        same = torch.equal(Run(root / name).load_checkpoint(1).tensors["model"]["w"], tensor)
    except OSError as problem:
        advice = "choose a folder that you may write to: --runs FOLDER"
        return Verdict(
            "runs", "bad", f"{root} cannot be written: {problem.strerror or problem}", advice
        )
    finally:
        shutil.rmtree(root / name, ignore_errors=True)
        if not there and root.exists() and not any(root.iterdir()):
            root.rmdir()
    if not same:
        return Verdict(
            "runs", "bad", f"a checkpoint in {root} came back changed", "do not use this disk"
        )
    return Verdict("runs", "good", f"a run with a checkpoint was written to {root} and read back")


def check_packages(what: Examination) -> Verdict:
    """Optional packages that are not installed, by extra."""
    missing: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("maetok-lab") or []:
        found = re.match(r"([A-Za-z0-9._-]+).*extra == ['\"](\w+)['\"]", line)
        if found and not _installed(found[1]):
            missing.setdefault(found[2], []).append(found[1])
    if not missing:
        return Verdict("packages", "good", "all optional packages are installed")
    told = "; ".join(f"{extra}: {', '.join(names)}" for extra, names in missing.items())
    return Verdict(
        "packages",
        "fair",
        f"not installed, {told}",
        f"pip install 'maetok-lab[{','.join(missing)}]'",
    )


def check_slurm(what: Examination) -> Verdict:
    """Whether sweeps could go to a cluster from here."""
    if not shutil.which("sinfo"):
        return Verdict("slurm", "good", "no Slurm here: sweeps run on this machine")
    command = ["sinfo", "--noheader", "--format=%P %D nodes %T"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        return Verdict(
            "slurm",
            "fair",
            f"sinfo fails: {done.stderr.strip()}",
            "ask the cluster's administrators",
        )
    return Verdict("slurm", "good", "; ".join(done.stdout.strip().splitlines()) or "no partitions")


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


CHECKS: dict[str, Callable[[Examination], Verdict]] = {
    "python": check_python,
    "torch": check_torch,
    "device": check_device,
    "kernels": check_kernels,
    "disk": check_disk,
    "runs": check_run,
    "data": check_data,
    "collective": check_collective,
    "packages": check_packages,
    "slurm": check_slurm,
}
