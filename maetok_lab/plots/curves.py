"""Lines over training steps, and what all figures share: axes, frame, and the colour of a name."""

import colorsys
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

# Okabe and Ito 2008: told apart with any kind of colour vision; black last
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#000000")
# of a class, by its number, in every figure and view: seen on white and on black
CLASS_COLOURS = PALETTE[:7] + ("#7B3294", "#8DB600", "#B2182B", "#7F7F7F", "#00B2C2")
# the ladder's rungs keep their colour in every figure, whichever of them are drawn
RUNGS = {"ae": 0, "kl": 4, "ae-mask": 5, "hog": 2, "semantic": 3, "all": 1}
MARKERS = "osD^vP*X"
FEW_POINTS = 20  # up to so many points a line marks each of them
X_LABELS = {"step": "training step", "images": "training images seen", "hours": "hours"}
WIDE_FONTS = {"Arial Unicode MS", "Hiragino Sans", "Malgun Gothic", "SimHei", "Yu Gothic"}
Tables = Mapping[str, pd.DataFrame]  # one line or colour for each, by the name in the legend


# Shared by all figures --------------------------------------------------------------------------


def colours_for(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: a ladder rung's own, else the next that no rung here has.

    The rung may be a part of the name, as in `tokenizer-hog-s0`.
    """
    numbers = {str(name): _rung_number(str(name)) for name in names}
    free = set(range(len(PALETTE))) - set(numbers.values())
    # with more names than colours they repeat; markers and labels tell them apart then
    following = itertools.cycle(sorted(free) or range(len(PALETTE)))
    colours = {}
    for name, number in numbers.items():
        if number is None:
            number = next(following)
        colours[name] = PALETTE[number]
    return colours


def class_colours(count: int) -> list[str]:
    """A colour for each of `count` classes, by number; beyond 12 hues that lie far apart."""
    colours = list(CLASS_COLOURS[:count])
    for number in range(len(colours), count):
        # steps of the golden ratio: neighbours in number are far apart in hue
        hue = number * 0.618034 % 1
        red, green, blue = colorsys.hls_to_rgb(hue, (0.42, 0.58, 0.5)[number % 3], 0.7)
        colours.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return colours


def _rung_number(name: str) -> int | None:
    """Where the palette holds the rung that `name` is or contains; None without one."""
    words = f"-{name.lower().replace('_', '-')}-"
    # a number behind it makes it an ablation's: "kl-1e-2"
    rungs = [rung for rung in RUNGS if re.search(rf"-{rung}-(?!\d)", words)]
    return RUNGS.get(max(rungs, key=len, default=""))  # the longest: "ae-mask" contains "ae"


def new_figure(width: float, height: float) -> Any:
    """An empty figure of that size in inches. Raises ImportError without matplotlib."""
    try:
        from matplotlib import pyplot
    except ImportError as problem:
        raise ImportError(
            "figures need matplotlib: pip install 'maetok-lab[notebooks]'"
        ) from problem
    return pyplot.figure(figsize=(width, height), layout="constrained")


@functools.cache
def _drawn_characters() -> frozenset[int]:
    """The code points that matplotlib's fonts have, those for other scripts included."""
    from matplotlib import font_manager, rcParams

    # the usual font, then whatever this machine has for Chinese, Japanese and Korean
    installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    families = [name for name in sorted(installed) if "CJK" in name or name in WIDE_FONTS]
    rcParams["font.family"] = [*rcParams["font.family"], *families[:2]]
    paths = [font_manager.findfont("DejaVu Sans"), *(installed[name] for name in families[:2])]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))


def drawable(name: str) -> str:
    r"""A name for a figure: no formula between dollars, `\u5199` for what no font here can draw."""
    letters = []
    for letter in str(name).replace("$", r"\$"):
        has_glyph = letter.isascii() or ord(letter) in _drawn_characters()
        letters.append(letter if has_glyph else letter.encode("unicode_escape").decode())
    return "".join(letters)


def axes(ax: Any = None, *, size: tuple[float, float] = (5.2, 3.6)) -> Any:
    """`ax`, or the axes of a new figure of `size` inches. Raises ImportError without matplotlib."""
    if ax is None:
        ax = new_figure(*size).add_subplot()
    return ax


def check_columns(table: pd.DataFrame, names: Iterable[str]) -> None:
    """Raise ValueError where `table` lacks one of the columns."""
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"no column {missing}; the table has {sorted(map(str, table.columns))}")


def draw_line(ax: Any, x: pd.Series, y: pd.Series, **style: Any) -> None:
    """A thin line, which marks its points where these are few."""
    if len(x) <= FEW_POINTS:
        style["marker"] = "o"
    ax.plot(x, y, markersize=3, linewidth=1.3, **style)


def finish(ax: Any) -> Any:
    """Quiet frame and grid, and a legend where lines have names -> ax."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    words = [ax.xaxis.label, ax.yaxis.label, *ax.texts]
    if ax.get_legend_handles_labels()[1]:
        words += ax.legend(frameon=False, fontsize="small").get_texts()
    # names are of runs and of what they logged: no formula between dollars, which may be none
    for text in words:
        text.set_parse_math(False)
    return ax


# Losses -----------------------------------------------------------------------------------------


def plot_losses(
    metrics: pd.DataFrame,
    *,
    columns: Sequence[str] | None = None,
    x: str = "step",
    log: bool = False,
    ax: Any = None,
) -> Any:
    """Losses over training steps (or images, or hours): one colour a column -> Axes.

    `metrics` is `Run.metrics()`; train is solid, other splits are dashed. `columns` default to
    `loss` and every `loss/...`. Raises ValueError for a column that is not there, or no loss.
    """
    if columns is None:
        columns = [name for name in metrics if f"{name}/".startswith("loss/")]
    if not columns:
        raise ValueError(f"no column named loss in the metrics; they have {list(metrics.columns)}")
    check_columns(metrics, [x, *columns])

    # metrics of one split may come without its name
    splits = pd.Series("train", index=metrics.index)
    if "split" in metrics:
        splits = metrics["split"].fillna("train")
    names = sorted(splits.unique(), key=lambda split: (split != "train", split))

    # a logged row has only some of the columns: a line joins the rows that have its own
    ax = axes(ax)
    for column, colour in colours_for(columns).items():
        for split, dashes in zip(names, ("-", "--", ":", "-.")):
            rows = metrics[(splits == split) & metrics[column].notna()].sort_values(x)
            if rows.empty:
                continue
            style = {"linestyle": dashes, "color": colour, "label": column}
            if len(names) > 1:
                style["label"] = f"{column}, {split}"
            draw_line(ax, rows[x], rows[column], **style)

    ax.set_xlabel(X_LABELS.get(x, x))
    ax.set_ylabel("loss" if len(columns) > 1 else columns[0])
    if log:
        ax.set_yscale("log")
    return finish(ax)
