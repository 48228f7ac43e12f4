"""Line charts on a page: `chart(...)` is a spec, which chart.js draws; `line_chart` its widget."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maetok_lab.widgets.panel import panel

MOST_POINTS = 400  # of a line on the page: a chart is about as many pixels wide


def line(
    name: str, x: Sequence[float], y: Sequence[float], colour: str, **look: Any
) -> dict[str, Any]:
    """One line of a chart, thinned to what a page can show. `look`: `dash` "4 3", `marks` True."""
    x = np.asarray(x, float)
    y = np.asarray(y, float)
    # evenly, with both ends
    if len(x) > MOST_POINTS:
        places = np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int)
        x, y = x[places], y[places]
    return {"name": name, "x": _numbers(x), "y": _numbers(y), "colour": colour} | look


def chart(
    lines: Sequence[Mapping[str, Any]],
    *,
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    width: int,
    height: int,
    points: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A spec. `x` and `y` have a `label`, and may have a `range`, `log` or `percent`.

    `points` ({"x", "y", "colour"}) are drawn as rings.
    """
    return {
        "lines": list(lines),
        "points": list(points),
        "x": dict(x),
        "y": dict(y),
        "width": width,
        "height": height,
    }


def line_chart(spec: Mapping[str, Any]) -> Any:
    """The widget of a spec; it follows its trait `spec`."""
    return panel(["chart.js", "line_chart.js"], {"spec": spec})


def _numbers(values: np.ndarray) -> list[float | None]:
    # JSON has no nan and no infinity: they are gaps
    return [value if np.isfinite(value) else None for value in values.tolist()]
