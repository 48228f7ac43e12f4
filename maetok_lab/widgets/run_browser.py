"""All runs of a folder: table, losses on one chart, what differs between configs, pictures over training, notebooks."""

import functools
import html
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from maetok_lab.plots.curves import colours_for
from maetok_lab.plots.runs import plot_run_lines
from maetok_lab.runs import Run, list_runs, runs_root
from maetok_lab.runs.tables import (
    config_differences,
    logged_columns,
    loss_lines,
    notebooks_of,
    sample_pictures,
)
from maetok_lab.widgets.front import BLANK, Studio, figure_widget, ipywidgets, png_image


class RunBrowser(Studio):
    """The runs under `root` (runs/ beside the library by default); `chosen` are their names. `table` is `list_runs`.

    Raises FileNotFoundError for a folder without runs, ValueError for a chosen name that is not there.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        chosen: Sequence[str] | None = None,
        column: str | None = None,
    ):
        self.root = runs_root(root)
        self.table = list_runs(self.root)
        if not len(self.table):
            raise FileNotFoundError(f"there are no runs in {self.root}")
        self.names = self.table["run"].tolist()
        trained = [name for name in self.names if logged_columns([Run(self.root / name)])]
        self.choose(list(chosen or trained[:2] or self.names[:1]))
        if column is not None and column not in self.columns:
            raise ValueError(f"no column {column!r} was logged; choose one of {self.columns}")
        self.column = column or next(iter(self.columns), "")

    # State ------------------------------------------------------------------------------------------------------------

    def choose(self, names: Sequence[str]) -> None:
        """The runs to set side by side."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise ValueError(f"no run {missing[0]!r} in {self.root}; there are {self.names}")
        self.runs = [Run(self.root / name) for name in names]
        self.columns = logged_columns(self.runs)

    @property
    def pictures(self) -> list[tuple[str, Path]]:
        """(run and step, picture) of the chosen runs, in order of run and step."""
        return [
            (f"{run.name}, step {step}", path)
            for run in self.runs
            for step, path in sample_pictures(run).items()
        ]

    def lines(self) -> dict[str, Any]:
        """The present column of each chosen run that logged it."""
        return loss_lines(self.runs, self.column)

    def twin(self) -> Any:
        """The losses as a matplotlib figure; None where nothing was logged."""
        return plot_run_lines(self.lines(), self.column).figure if self.column else None

    # View -------------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def controls(self) -> SimpleNamespace:
        """Every control by name."""
        package = ipywidgets()
        return SimpleNamespace(
            runs=package.SelectMultiple(
                options=self.names,
                value=[run.name for run in self.runs],
                description="runs",
                rows=min(10, len(self.names)),
                layout={"width": "420px"},
            ),
            column=package.Dropdown(
                options=self.columns, value=self.column or None, description="loss"
            ),
            log=package.Checkbox(value=False, description="logarithmic"),
            picture=package.IntSlider(
                value=0, min=0, max=0, description="picture", layout={"width": "420px"}
            ),
        )

    @functools.cached_property
    def view(self) -> Any:
        """The widget."""
        package, see = ipywidgets(), self.controls
        self.chart = figure_widget(
            self._traces(), width=640, height=330, xaxis_title="training step", showlegend=True
        )
        self.image = png_image(width="512px", max_height="330px", object_fit="contain")
        self.shown, self.about, self.differences, self.links = (package.HTML() for _ in range(4))
        see.runs.observe(self._on_runs, "value")
        see.column.observe(self._on_column, "value")
        see.log.observe(lambda _: self._show_lines(), "value")
        see.picture.observe(lambda _: self._show_picture(), "value")
        wrap = {"flex_flow": "row wrap", "max_width": "1160px", "align_items": "flex-start"}
        pictures = package.VBox([see.picture, self.shown, self.image])
        view = package.VBox(
            [
                package.HBox(
                    [see.runs, package.VBox([see.column, see.log, self.links])], layout=wrap
                ),
                package.HBox(
                    [package.Box([self.chart], layout={"width": "650px"}), pictures], layout=wrap
                ),
                self.about,
                self.differences,
            ]
        )
        self._show()
        return view

    def _on_runs(self, change: Any) -> None:
        self.choose(list(change["new"]))
        see = self.controls
        wanted = self.column if self.column in self.columns else next(iter(self.columns), None)
        see.column.options = self.columns
        see.column.value = wanted
        self._show()
        self._show_lines()

    def _on_column(self, change: Any) -> None:
        self.column = change["new"] or ""
        self._show_lines()

    def _show(self) -> None:
        see = self.controls
        see.picture.max = max(len(self.pictures) - 1, 0)
        see.picture.disabled = not self.pictures
        rows = self.table[self.table["run"].isin([run.name for run in self.runs])].dropna(
            axis=1, how="all"
        )
        self.about.value = "<b>the chosen runs</b>" + _table(rows, index=False)
        different = config_differences(self.runs)
        words = _table(different) if len(different) else "<p>their configs are alike</p>"
        self.differences.value = (
            f"<b>where their configs differ</b>{words}" if len(self.runs) > 1 else ""
        )
        pages = {page for run in self.runs for page in notebooks_of(run, self.root)}
        items = "".join(f"<li>{_link(page, self.root)}</li>" for page in sorted(pages))
        self.links.value = (
            f"<b>executed notebooks</b><ul>{items}</ul>"
            if items
            else "no executed notebook reported them"
        )
        self._show_picture()

    def _traces(self) -> list[dict[str, Any]]:
        lines = self.lines() if self.column else {}
        values = {
            name: {"x": line["step"].tolist(), "y": line[self.column].tolist()}
            for name, line in lines.items()
        }
        looks = {
            name: {"name": name, "line": {"color": colour}}
            for name, colour in colours_for(lines).items()
        }
        return [{"type": "scatter", "mode": "lines"} | looks[name] | values[name] for name in lines]

    def _show_lines(self) -> None:
        chart = self.chart
        with chart.batch_update():
            chart.data = ()
            chart.add_traces(self._traces())
            chart.layout.yaxis.title.text = self.column
            chart.layout.yaxis.type = "log" if self.controls.log.value else "linear"

    def _show_picture(self) -> None:
        pictures = self.pictures
        title, path = (
            pictures[min(self.controls.picture.value, len(pictures) - 1)]
            if pictures
            else ("no pictures", None)
        )
        self.shown.value = html.escape(title)
        self.image.value = path.read_bytes() if path else BLANK


def _table(frame: Any, *, index: bool = True) -> str:
    return f"<div style='overflow-x:auto;font-size:12px'>{frame.to_html(index=index, border=0, float_format='%.4g')}</div>"


def _link(page: Path, root: Path) -> str:
    """Jupyter serves what is below its own folder, `make lab`'s being the one that holds runs/, under /files."""
    inside = html.escape(page.relative_to(root.parent).as_posix())
    return f"<a href='/files/{inside}' target='_blank'>{inside}</a>"
