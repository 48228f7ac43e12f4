"""Ten thousand runs, some of them damaged: how long it takes to list them.

python tests/attack/listing.py [COUNT]
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from maetok_lab.runs import list_runs

EVERY = 100  # of so many runs one is damaged


def make_run(root: Path, number: int) -> None:
    """A finished run as a training leaves it, without the bytes of its weights."""
    folder = root / f"tokenizer-{number:05d}"
    checkpoint = folder / "checkpoints" / "step-0001400"
    checkpoint.mkdir(parents=True)
    for group in ("model", "ema", "optimizer"):
        (checkpoint / f"{group}.safetensors").write_bytes(b"x" * 16)
    (checkpoint / "state.json").write_text("{}")
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in checkpoint.iterdir()
    }
    summary = {"steps": 1400, "pixel": 0.1, "ended": "2026-01-01T00:00:00+00:00", "files": files}
    config = {"class": "Job", "fingerprint": f"{number:012x}", "config": {"seed": number}}
    provenance = {"started": "2026-01-01T00:00:00+00:00", "parents": []}
    for name, record in (("config", config), ("provenance", provenance), ("summary", summary)):
        (folder / f"{name}.json").write_text(json.dumps(record))


def damage(root: Path, number: int) -> None:
    """Empty one of a run's files, or lose its weights."""
    folder = root / f"tokenizer-{number:05d}"
    which = number // EVERY % 4
    if which == 3:
        (folder / "checkpoints" / "step-0001400" / "model.safetensors").unlink()
    else:
        (folder / f"{('config', 'provenance', 'summary')[which]}.json").write_text("")


def many_runs(count: int = 10_000) -> dict:
    """List so many. -> tried, survived (listed; damaged ones with a problem), seconds"""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(count):
            make_run(root, number)
        damaged = range(0, count, EVERY)
        for number in damaged:
            damage(root, number)
        started = time.perf_counter()
        table = list_runs(root)
        seconds = time.perf_counter() - started
    failures = []
    if len(table) != count:
        failures.append(f"{len(table)} of {count} runs are listed")
    named = table["problem"].notna()
    if named.sum() != len(damaged) or not named.iloc[damaged].all():
        failures.append(f"{named.sum()} of {len(damaged)} damaged runs have a problem")
    return {"tried": count, "survived": len(table), "seconds": seconds, "failures": failures}


if __name__ == "__main__":
    print(many_runs(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
