"""One logged number of several runs on one pair of axes."""

from typing import Any

from maetok_lab.plots.curves import Tables, axes, colours_for, draw_line, finish


def plot_run_lines(lines: Tables, column: str, *, log: bool = False, ax: Any = None) -> Any:
    """Lines of `runs.tables.loss_lines` for a column, one colour a run -> Axes"""
    ax = axes(ax)
    for name, colour in colours_for(lines).items():
        rows = lines[name]
        draw_line(ax, rows["step"], rows[column], color=colour, label=name)
    ax.set_xlabel("training step")
    ax.set_ylabel(column)
    if log:
        ax.set_yscale("log")
    return finish(ax)
