"""All runs of a folder: table, losses on one chart, differing configs, pictures, notebooks."""

import functools
import html
import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pandas.api.types import is_number

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
from maetok_lab.widgets.charts import chart, line, line_chart
from maetok_lab.widgets.front import BLANK, FULL, Studio, ipywidgets, kernel_line, png_image

PAGE = {"width": "100%", "max_width": "1120px"}
NARROW = {"width": "38%", "overflow": "hidden"}
BROAD = {"width": "60%", "margin": "0 0 0 2%"}


class RunBrowser(Studio):
    """The runs under `root` (runs/ beside the library by default). `table` is `list_runs`.

    `selection` are the names of the runs to set side by side; by default the first two that have
    losses. `column` is the logged value that the chart shows at first. Raises FileNotFoundError for
    a folder without runs, ValueError for a name that is not there.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        selection: Sequence[str] | None = None,
        column: str | None = None,
    ):
        self.root = runs_root(root)
        self.table = list_runs(self.root)
        if not len(self.table):
            raise FileNotFoundError(
                f"there are no runs in {self.root}; run notebooks/00_start_here.ipynb first, "
                "or give the folder that holds yours"
            )
        # a run whose config cannot be read is in the table alone, which says why
        self.names = self.table["run"][self.table["kind"].notna()].tolist()
        self.unreadable = self.table[self.table["kind"].isna()]
        if not self.names:
            raise FileNotFoundError(f"no run can be read: {'; '.join(self.unreadable['problem'])}")
        if not selection:
            # those with losses first: there is something to see
            trained = (name for name in self.names if logged_columns([Run(self.root / name)]))
            selection = list(itertools.islice(trained, 2)) or self.names[:1]
        self.select(selection)
        if column is not None and column not in self.columns:
            raise ValueError(f"no column {column!r} was logged; choose one of {self.columns}")
        self.column = column or next(iter(self.columns), "")

    # State ----------------------------------------------------------------------------------------

    def select(self, names: Sequence[str]) -> None:
        """Set these runs side by side."""
        for name in names:
            if name not in self.names:
                raise ValueError(f"no run {name!r} in {self.root}; there are {self.names}")
        self.runs = [Run(self.root / name) for name in names]
        self.columns = logged_columns(self.runs)

    @property
    def pictures(self) -> list[tuple[str, Path]]:
        """(run and step, picture) of the selected runs, in order of run and step."""
        pictures = []
        for run in self.runs:
            for step, path in sample_pictures(run).items():
                pictures.append((f"{run.name}, step {step}", path))
        return pictures

    def lines(self) -> dict[str, Any]:
        """The present column of each selected run that logged it."""
        return loss_lines(self.runs, self.column) if self.column else {}

    def twin(self) -> Any:
        """The losses as a matplotlib figure; None where nothing was logged."""
        return plot_run_lines(self.lines(), self.column).figure if self.column else None

    # View -----------------------------------------------------------------------------------------

    @functools.cached_property
    def controls(self) -> SimpleNamespace:
        """Every control by name."""
        package = ipywidgets()
        return SimpleNamespace(
            words=package.Text(
                placeholder="words of their names", description="filter", layout=FULL
            ),
            runs=package.SelectMultiple(
                options=self.names,
                value=[run.name for run in self.runs],
                description="runs",
                rows=min(10, len(self.names)),
                layout=FULL,
            ),
            # None, not "", where nothing was logged: a Dropdown takes only what it offers
            column=package.Dropdown(
                options=self.columns, value=self.column or None, description="loss"
            ),
            log=package.Checkbox(value=False, description="logarithmic"),
            # all pictures in one row, of one run after the other
            picture=package.IntSlider(value=0, min=0, max=0, description="picture", layout=FULL),
        )

    @functools.cached_property
    def view(self) -> Any:
        """The widget."""
        package = ipywidgets()
        controls = self.controls
        self.chart = line_chart(self.chart_spec())
        self.image = png_image(max_width="100%", max_height="300px", object_fit="contain")
        self.title = package.HTML()  # of the picture
        self.about = package.HTML()  # table of the runs
        self.differences = package.HTML()  # table of their configs
        self.links = package.HTML()  # to executed notebooks
        controls.words.observe(self._on_words, "value")
        controls.runs.observe(self._on_runs, "value")
        controls.column.observe(self._on_column, "value")
        controls.log.observe(lambda _: self._show_lines(), "value")
        controls.picture.observe(lambda _: self._show_picture(), "value")

        # the runs beside their chart, the pictures beside the notebooks, tables below
        selection = package.VBox(
            [controls.words, controls.runs, controls.column, controls.log], layout=NARROW
        )
        chart = package.Box([self.chart], layout=BROAD)
        links = package.VBox([controls.picture, self.title, self.links], layout=NARROW)
        pictures = package.Box([self.image], layout=BROAD)
        rows = [package.HBox([selection, chart]), package.HBox([links, pictures])]
        self._show()
        return package.VBox([kernel_line(), *rows, self.about, self.differences], layout=PAGE)

    def _on_words(self, change: Any) -> None:
        words = change["new"].lower().split()
        names = [name for name in self.names if all(word in name.lower() for word in words)]
        # what is chosen stays in the list
        selection = self.controls.runs.value
        self.controls.runs.options = list(dict.fromkeys([*selection, *names]))
        self.controls.runs.value = selection

    def _on_runs(self, change: Any) -> None:
        self.select(change["new"])
        # the column stays where these runs logged it too; new options would reset it
        column = self.column if self.column in self.columns else next(iter(self.columns), None)
        self.controls.column.options = self.columns
        self.controls.column.value = column
        self._show()
        self._show_lines()

    def _on_column(self, change: Any) -> None:
        self.column = change["new"] or ""
        self._show_lines()

    def _show(self) -> None:
        self.controls.picture.max = max(len(self.pictures) - 1, 0)
        self.controls.picture.disabled = not self.pictures

        # what the runs are, without columns that none of them has
        names = [run.name for run in self.runs]
        rows = self.table[self.table["run"].isin(names)].dropna(axis=1, how="all")
        self.about.value = ""
        if len(rows):
            facts = rows.drop(columns="fingerprint").set_index("run").T.rename_axis(columns=None)
            self.about.value = "<b>the chosen runs</b>" + _table(facts)

        if len(self.unreadable):
            facts = self.unreadable[["run", "problem"]].set_index("run")
            self.about.value += "<b>runs that cannot be read</b>" + _table(facts)

        # and what sets them apart
        self.differences.value = ""
        if len(self.runs) > 1:
            frame = config_differences(self.runs)
            words = _table(frame) if len(frame) else "<p>their configs are alike</p>"
            self.differences.value = f"<b>where their configs differ</b>{words}"

        # one link a notebook, also where several of these runs were reported by it
        pages: set[Path] = set()
        for run in self.runs:
            pages.update(notebooks_of(run, self.root))
        self.links.value = "no executed notebook reported them"
        if pages:
            items = [f"<li>{_link(page, self.root)}</li>" for page in sorted(pages)]
            self.links.value = f"<b>executed notebooks</b><ul>{''.join(items)}</ul>"
        self._show_picture()

    def chart_spec(self) -> dict[str, Any]:
        """The chart of the present column, a line a run."""
        lines = self.lines()
        runs = []
        for name, colour in colours_for(lines).items():
            frame = lines[name]
            runs.append(line(name, frame["step"], frame[self.column], colour))
        y = {"label": self.column, "log": self.controls.log.value}
        return chart(runs, x={"label": "training step"}, y=y, width=640, height=300)

    def _show_lines(self) -> None:
        self.chart.spec = self.chart_spec()
        self.moved()

    def _show_picture(self) -> None:
        pictures = self.pictures
        if not pictures:
            self.title.value = "no pictures"
            self.image.value = BLANK
            return
        # the slider may still stand behind the last picture of runs that have fewer
        title, path = pictures[min(self.controls.picture.value, len(pictures) - 1)]
        self.title.value = html.escape(title)
        self.image.value = path.read_bytes()


def _table(frame: Any) -> str:
    """A table with a column a run."""
    words = frame.map(readable_number)
    table = words.to_html(border=0, justify="left", na_rep="")
    look = "overflow-x:auto;font-size:12px;line-height:1.4;white-space:nowrap"
    return f"<div style='{look}'>{table}</div>"


def readable_number(value: Any) -> Any:
    """Four digits, or all before the point with commas; nothing for nan. Words stay as they are."""
    if isinstance(value, bool) or not is_number(value):
        return value
    if value != value:
        return ""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _link(page: Path, root: Path) -> str:
    # Jupyter serves what is below its own folder under /files; `make lab`'s is the one with runs/
    inside = html.escape(page.relative_to(root.parent).as_posix())
    return f"<a href='/files/{inside}' target='_blank'>{inside}</a>"
