"""Disks that fill up at any moment: one clear line, nothing lost, and on with more room.

python tests/attack/disks.py [COUNT]: mounts small disks in a namespace of its own (Linux).
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import kill_work  # noqa: E402
from kills import undisturbed  # noqa: E402

ROOM = "512m"  # of a disk that is large enough
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
# what a person is told: that the disk is full (or its inodes, or a quota), and what helps
ADVICE = re.compile(r"(the disk is full|no more files|your quota).*free some .* prune", re.DOTALL)


def can_mount() -> bool:
    """Whether this machine lets a user mount a disk of memory in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = [*NAMESPACE, "mount", "-t", "tmpfs", "none", folder]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def full_disks(count: int, seed: int = 0) -> dict:
    """So many disks that are too small. -> tried, survived, failures"""
    command = [*NAMESPACE, sys.executable, __file__, "inside", str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def resize(disk: Path, options: str) -> None:
    """Give a mounted disk another size, or number of files."""
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def usage(disk: Path) -> tuple[int, int]:
    """Bytes and files on a disk."""
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize, status.f_files - status.f_ffree


def attempt(stage: str, root: Path) -> str | None:
    """Run a stage in a process of its own. -> None, or the error that ended it"""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        error = ""
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            kill_work.STAGES[stage](root)
        except BaseException as problem:
            error = f"{type(problem).__name__}: {problem}"
        os.write(writer, error.encode()[:4000])
        os._exit(bool(error))
    os.close(writer)
    with open(reader) as file:
        error = file.read()
    _, status = os.waitpid(child, 0)
    return error or (f"exit status {status}" if status else None)


def fill_and_continue(stage: str, whole: Path, disk: Path, draw: random.Random) -> str | None:
    """Let a stage meet a full disk, then give it room. -> what is not as it should be"""
    for earlier, run in kill_work.RUNS.items():
        if earlier == stage:
            break
        shutil.copytree(whole / run, disk / run)
    before = usage(disk)
    run = kill_work.RUNS[stage]
    shutil.copytree(whole / run, disk / "needed")
    needed = usage(disk)
    shutil.rmtree(disk / "needed")

    # a share of the bytes that it needs, or of the files
    share = draw.uniform(0.05, 0.95)
    if draw.random() < 0.7:
        size = before[0] + int(share * (needed[0] - before[0]))
        resize(disk, f"size={size // 1024}k,nr_inodes=100000")
    else:
        inodes = before[1] + max(1, int(share * (needed[1] - before[1])))
        resize(disk, f"size={ROOM},nr_inodes={inodes}")
    error = attempt(stage, disk)
    if error is not None and not ADVICE.search(error):
        return f"{stage}: {error}"

    resize(disk, f"size={ROOM},nr_inodes=100000")
    error = attempt(stage, disk)
    if error is not None:
        return f"{stage}, with room again: {error}"
    if kill_work.outcome(disk / run) != kill_work.outcome(whole / run):
        return f"{stage}: another result than undisturbed"
    return None


def inside(count: int, seed: int) -> dict:
    """`full_disks` in the namespace."""
    draw = random.Random(seed)
    failures = []
    stages = list(kill_work.STAGES)
    with undisturbed() as (whole, _), tempfile.TemporaryDirectory() as folder:
        disk = Path(folder)
        for number in range(count):
            options = f"size={ROOM},nr_inodes=100000"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], check=True)
            try:
                problem = fill_and_continue(stages[number % len(stages)], whole, disk, draw)
                if problem:
                    failures.append(problem)
            finally:
                subprocess.run(["umount", disk], check=True)
    return {"tried": count, "survived": count - len(failures), "failures": failures}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["inside"]:
        print(json.dumps(inside(int(sys.argv[2]), int(sys.argv[3]))))
    else:
        print(full_disks(int(sys.argv[1]) if len(sys.argv) > 1 else 60))
