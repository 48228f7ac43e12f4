"""Where runs live, and what they are called: by preset, images, labels, seed and changes."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maetok_lab.identity import fingerprint_of, hash_of

# A run's name is a folder, and a word on a command line.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def runs_root(path: str | Path | None = None) -> Path:
    """Where runs live: `path`, or `runs/` in the library's checkout or the working directory."""
    if path is not None:
        return Path(path)
    # notebooks run in notebooks/, shells anywhere: all meet in the checkout
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "runs"


def checked_name(name: str) -> str:
    """`name`, if it is a plain folder name; ValueError for path separators or a leading dot."""
    if not NAME.fullmatch(name) or len(name) > 120:
        raise ValueError(
            "a run's name is letters, digits, '.', '_' and '-' "
            f"(120 at most, no leading dot), not {name!r}"
        )
    return name


def usual_labels(source: str | Path) -> str:
    """What images are labelled by where nobody says it: "category-style" for the shipped ones."""
    return "category-style" if str(source) == "emoji" else "category"


def run_suffix(
    preset: str, seed: int, source: str | Path = "emoji", labels: str | None = None
) -> str:
    """How the names of a notebook's runs end: "tiny-s0"; "tiny-photos-3f2a91-s0" for other images.

    The digits are of the images' place, so that two folders of one name keep apart. Labels other
    than the usual ones are named too.
    """
    words = [preset]
    if str(source) != "emoji":
        # the images' folder or file, cleaned of what no run's name may hold
        place = Path(source).expanduser().resolve()
        stem = re.sub(r"[^A-Za-z0-9._]+", "-", place.name).strip("-.") or "images"
        words += [stem[:60], hash_of([os.fsencode(place)])[:6]]
    if labels not in (None, usual_labels(source)):
        words.append(re.sub(r"[^A-Za-z0-9._]+", "-", labels))
    return "-".join([*words, f"s{seed}"])


def changes_suffix(changes: Mapping[str, Any]) -> str:
    """What `changes` of a config add to a run's name: "-" and a hash, "" where there are none.

    So a changed training never takes the name, or the place, of the one that the preset gives.
    """
    return f"-{fingerprint_of(dict(changes))[:8]}" if changes else ""
