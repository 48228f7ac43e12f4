"""The pictures of a finished sweep: one picture an entry, and quality against speed."""

import base64
import io
from pathlib import Path
from typing import Any

import pandas as pd

from maetok_lab.files import read_json, write_bytes
from maetok_lab.plots.sweep import pareto_front, plot_gallery, plot_pareto
from maetok_lab.workflow.parameters import read_cells
from maetok_lab.workflow.spec import SweepSpec

MAX_PICTURES = 48


def write_pictures(folder: Path, frame: pd.DataFrame, spec: SweepSpec) -> None:
    """Write gallery.png of what the entries made into the sweep's folder, and pareto.png.

    The second one needs entries that reported both quality and speed.
    """
    finished = frame[frame["state"] == "done"]

    # More pictures than these would be too small to look at.
    pictures = {}
    for number, row in finished.head(MAX_PICTURES).iterrows():
        picture = picture_of(Path(row["folder"]), folder / "pictures" / f"{number}.png")
        if picture:
            pictures[_title(number, row, spec)] = picture
    if pictures:
        _save(plot_gallery(pictures), folder / "gallery.png")

    if spec.quality in finished and spec.speed in finished:
        columns = {"quality": spec.quality, "speed": spec.speed}
        columns["larger_is_better"] = spec.larger_is_better
        if pareto_front(finished, **columns).any():
            _save(plot_pareto(finished, **columns).figure, folder / "pareto.png")


def picture_of(folder: Path, target: Path) -> Path | None:
    """An entry's picture: the newest sample of the runs it made.

    Else the last figure of its notebook, which is put at `target`.
    """
    samples: list[Path] = []
    for run in read_json(folder / "summary.json")["runs"]:
        samples += (folder / run / "samples").glob("*.png")
    if samples:
        return max(samples, key=lambda path: path.stat().st_mtime)

    # An executed notebook holds its figures as base64, whole or in lines.
    for cell in reversed(read_cells(folder / "notebook.ipynb")):
        for output in reversed(cell.get("outputs", [])):
            data = output.get("data", {}).get("image/png")
            if data:
                write_bytes(target, base64.b64decode("".join(data)))
                return target
    return None


def _title(number: int, row: pd.Series, spec: SweepSpec) -> str:
    words = [f"{name} {row[name]}" for name in spec.swept if name in row]
    title = f"{number}: {', '.join(words)}"
    if spec.quality in row and pd.notna(row[spec.quality]):
        title += f"\n{spec.quality} {row[spec.quality]:.4g}"
    return title


def _save(figure: Any, path: Path) -> None:
    """Write a figure atomically, and let go of it."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    write_bytes(path, buffer.getvalue())
