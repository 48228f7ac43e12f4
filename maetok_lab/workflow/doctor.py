"""Whether this machine can do the work: check by check a plain verdict, and what to do."""

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
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from maetok_lab.device import describe, has_fast_bf16, pick_device, pick_precision, usable_cores
from maetok_lab.rng import generator
from maetok_lab.runs import Run, runs_root
from maetok_lab.workflow import collective

TRAINABLE_GB = 1.0  # of free disk; with less nothing can be trained
COMFORTABLE_GB = 10.0  # with less only small models
DATA_SECONDS = 1.0  # of reading images
SLOW_IMAGES = 100  # a second; fewer would keep even a small model waiting
COLLECTIVE_SECONDS = 120
BATCH = 64
FUSED_KERNELS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a check."""

    level: Literal["good", "fair", "bad"]
    facts: str
    advice: str = ""  # what to do when it is not "good"
    check: str = ""  # its name; `examine` fills it in

    def __str__(self) -> str:
        line = f"{self.level:<5} {self.check}: {self.facts}"
        return line + (f"\n      -> {self.advice}" if self.advice else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examination:
    """What to examine."""

    runs: str | None = None  # where runs go
    source: str = "emoji"  # which images to read
    image_size: int = 32  # at which size
    device: str = "auto"  # what to train on


def examine(options: Examination, open_images: Callable[..., Any]) -> Iterator[Verdict]:
    """Every check in turn; one that raises is a "bad" verdict, and the others go on.

    `open_images` is the data package's: this one knows nothing of images.
    """
    checks = CHECKS | {"data": lambda options: check_data(options, open_images)}
    for name, check in checks.items():
        try:
            verdict = check(options)
        except Exception as problem:
            message = f"{type(problem).__name__}: {problem}"
            verdict = Verdict("bad", message, "see the message; the other checks go on")
        yield dataclasses.replace(verdict, check=name)


def check_python(options: Examination) -> Verdict:
    """The interpreter, and whether torch has a thread for each core it may use and no more."""
    # Waiting threads spin: one too many makes a training several times slower.
    cores = usable_cores()
    threads = torch.get_num_threads()
    facts = f"{platform.python_version()} at {sys.executable}, {threads} threads on {cores} cores"
    if threads > cores:
        advice = f"threads wait for each other: set OMP_NUM_THREADS={cores}"
        return Verdict("fair", facts, advice)
    return Verdict("good", facts)


def check_torch(options: Examination) -> Verdict:
    """Versions of torch and torchvision, and whether torch was built for a GPU that is there."""
    import torchvision  # half a second, and only its version is needed

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    facts = f"torch {torch.__version__} for {built}, torchvision {torchvision.__version__}"
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        advice = "install a torch built for this machine's CUDA driver"
        return Verdict("bad", f"{facts}, but no GPU can be used", advice)
    return Verdict("good", facts)


def check_device(options: Examination) -> Verdict:
    """What would be trained on, in which precision, and how much memory is free there."""
    device = pick_device(options.device)
    facts = describe(device, pick_precision(device))
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        facts += f", {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        if free < 0.8 * total:  # a context and its libraries take a few percent
            advice = "another process holds memory there: nvidia-smi names it"
            return Verdict("fair", facts, advice)
    if not has_fast_bf16(device):
        return Verdict("fair", facts, "trainings run in fp32, at about half the speed")
    return Verdict("good", facts)


def check_kernels(options: Examination) -> Verdict:
    """Which fused attention kernels work here, compared with the plain computation."""
    device = pick_device(options.device)
    dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    # Any values will do: 2 images, 4 heads, 64 tokens of 32 channels.
    q = torch.sin(torch.arange(2 * 4 * 64 * 32, device=device, dtype=torch.float32))
    q = q.view(2, 4, 64, 32).to(dtype)
    with sdpa_kernel(SDPBackend.MATH):
        reference = scaled_dot_product_attention(q, q, q)
    right = []
    wrong = []
    for name in FUSED_KERNELS:
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                difference = (scaled_dot_product_attention(q, q, q) - reference).abs().max()
        except RuntimeError:  # how torch says that a kernel is not there
            continue
        # bf16 rounds these values, up to 1, by 0.004
        (right if difference < 0.05 else wrong).append(name.lower())

    facts = f"fused attention in {str(dtype).removeprefix('torch.')}: {', '.join(right) or 'none'}"
    if wrong:
        advice = "update torch, or the GPU's driver"
        return Verdict("bad", f"{facts}; wrong results from {wrong}", advice)
    if not right:
        return Verdict("fair", facts, "attention is slow: update torch")
    return Verdict("good", facts)


def check_disk(options: Examination) -> Verdict:
    """Free space where runs go."""
    # The folder may not be there yet; the disk is that of the nearest one above it.
    place = runs_root(options.runs).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    facts = f"{free:.1f} GB free at {place}"
    if free < TRAINABLE_GB:
        advice = "free some space: python -m maetok_lab prune, or choose another --runs folder"
        return Verdict("bad", facts, advice)
    if free < COMFORTABLE_GB:
        advice = "enough for small models; python -m maetok_lab prune frees old checkpoints"
        return Verdict("fair", facts, advice)
    return Verdict("good", facts)


def check_data(options: Examination, open_images: Callable[..., Any]) -> Verdict:
    """What opening the source costs, and how many images a second it gives to one process."""
    started = time.perf_counter()
    images = open_images(options.source, split="train", image_size=options.image_size)
    listed = time.perf_counter() - started
    images.batch(torch.arange(min(BATCH, len(images))))  # the first reading may fill a cache

    # for a second, in a random order as in training, from the start again where the images end
    num_images = 0
    order = torch.randperm(len(images), generator=generator(0, "doctor"))
    started = time.perf_counter()
    while time.perf_counter() - started < DATA_SECONDS:
        images.batch(order[(torch.arange(BATCH) + num_images) % len(images)])
        num_images += BATCH
    rate = num_images / (time.perf_counter() - started)
    facts = (
        f"{len(images)} training images of {options.source}, opened in {listed:.1f} s, "
        f"{rate:,.0f} a second in one process at {options.image_size} px"
    )
    if rate < SLOW_IMAGES:
        advice = (
            "cache the latents once (`write_latents`), or raise `workers` of TokenizerTraining; "
            "a faster disk helps"
        )
        return Verdict("fair", facts, advice)
    return Verdict("good", facts)


def check_collective(options: Examination) -> Verdict:
    """A sum across processes: one a GPU where there are several, else two on the CPU."""
    # torchrun finds a free port and starts the processes, as it would for a training.
    num_gpus = torch.cuda.device_count()
    num_processes = max(2, num_gpus)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(num_processes), collective.__file__]
    if num_gpus < 2:  # nccl cannot sum over two processes on one GPU
        command = ["env", "CUDA_VISIBLE_DEVICES=", *command]
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=COLLECTIVE_SECONDS, check=False
    )
    # One line of JSON, among what torchrun prints.
    match = re.search(r"\{.*\}", process.stdout)
    advice = "train in one process until this works"
    if process.returncode or not match:
        lines = process.stderr.strip().splitlines() or ["nothing was printed"]
        return Verdict("bad", f"{num_processes} processes failed: {lines[-1]}", advice)

    answer = json.loads(match[0])
    speed = f"{answer['bytes_per_second'] / 1e6:,.0f} MB/s"
    facts = f"{answer['processes']} processes over {answer['backend']}, {speed}"
    if not answer["right"]:
        return Verdict("bad", f"{facts}, and the sum is wrong", advice)
    return Verdict("good", facts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """The config of the run that `check_run` makes and removes."""

    size: int  # numbers in its checkpoint


def check_run(options: Examination) -> Verdict:
    """Write a run with a checkpoint, read it back, and remove it."""
    root = runs_root(options.runs)
    name = f"doctor-{os.getpid()}-{secrets.token_hex(4)}"
    existed = root.exists()
    probe = Probe(size=1000)
    tensor = torch.arange(probe.size)
    # The whole way that a training goes: lock, config, tensors, checksums.
    try:
        with Run.open(name, probe, root=root) as run:
            run.save_checkpoint(1, {"model": {"w": tensor}}, {})
        same = torch.equal(Run(root / name).load_checkpoint(1).tensors["model"]["w"], tensor)
    except OSError as problem:
        facts = f"{root} cannot be written: {problem.strerror or problem}"
        advice = "choose a folder that you may write to: --runs FOLDER"
        return Verdict("bad", facts, advice)
    finally:
        # leave nothing behind, not even an empty runs folder
        shutil.rmtree(root / name, ignore_errors=True)
        if not existed and root.exists() and not any(root.iterdir()):
            root.rmdir()
    if not same:
        facts = f"a checkpoint in {root} came back changed"
        return Verdict("bad", facts, "do not use this disk")
    return Verdict("good", f"a run with a checkpoint was written to {root} and read back")


def check_packages(options: Examination) -> Verdict:
    """Optional packages that are not installed, by extra."""
    # What pyproject.toml declares is in the metadata of the installed package.
    missing: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("maetok-lab") or []:
        # such as "submitit>=1.5.2; extra == 'cluster'"
        requirement = re.match(r"([A-Za-z0-9._-]+).*extra == ['\"](\w+)['\"]", line)
        if requirement and not _installed(requirement[1]):
            missing.setdefault(requirement[2], []).append(requirement[1])
    if not missing:
        return Verdict("good", "all optional packages are installed")
    parts = [f"{extra}: {', '.join(names)}" for extra, names in missing.items()]
    advice = f"pip install 'maetok-lab[{','.join(missing)}]'"
    return Verdict("fair", f"not installed, {'; '.join(parts)}", advice)


def check_slurm(options: Examination) -> Verdict:
    """Whether sweeps could go to a cluster from here."""
    if not shutil.which("sinfo"):
        return Verdict("good", "no Slurm here: sweeps run on this machine")
    command = ["sinfo", "--noheader", "--format=%P %D nodes %T"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if process.returncode:
        facts = f"sinfo fails: {process.stderr.strip()}"
        return Verdict("fair", facts, "ask the cluster's administrators")
    partitions = process.stdout.strip().splitlines()
    return Verdict("good", "; ".join(partitions) or "no partitions")


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# In this order: the cheap ones first. `examine` adds "data".
CHECKS: dict[str, Callable[[Examination], Verdict]] = {
    "python": check_python,
    "torch": check_torch,
    "device": check_device,
    "kernels": check_kernels,
    "disk": check_disk,
    "runs": check_run,
    "collective": check_collective,
    "packages": check_packages,
    "slurm": check_slurm,
}
