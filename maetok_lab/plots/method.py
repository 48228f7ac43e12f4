"""The method (the paper's section 3) as one picture, every part of which is computed.

Above, an image on its way through a masked tokenizer; below, noise on its way to a sample.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maetok_lab.analysis.masks import MaskStudy, study_mask
from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.model import DiffusionTransformer
from maetok_lab.generation.trajectories import TrajectoryPoint, decode_point, trajectory
from maetok_lab.inference import eval_mode
from maetok_lab.pictures import image_grid
from maetok_lab.plots.curves import PALETTE, drawable, new_figure
from maetok_lab.plots.masks import masked_picture, picture_of, target_pictures
from maetok_lab.tokenizer.anatomy import TokenStatistics
from maetok_lab.tokenizer.auxiliary import AuxiliaryDecoder
from maetok_lab.tokenizer.model import Tokenizer

SIZE = (11.0, 8.05)  # inches, of the whole picture; all places below are inches from its top left
ENCODER, PIXELS, AUXILIARY, DIFFUSION = PALETTE[:4]
TITLE = 10.5  # points
WORDS = 9.5
SMALL = 8.5
STATES = 5  # of the sampling that are drawn, noise and latents among them
RANGE = 2.5  # normalised latents from which on colours no longer change
FADED = 0.85  # how white patches are whose prediction does not count
TARGETS = {"hog": "HOG\ndecoder", "pixel": "auxiliary\npixels"}  # names of auxiliary decoders


def plot_method(
    tokenizer: Tokenizer,
    decoders: Mapping[str, AuxiliaryDecoder],
    model: DiffusionTransformer,
    space: LatentSpace,
    image: Tensor,
    mask: Tensor,
    *,
    label: int,
    label_name: str = "",
    seed: int = 0,
    **sampling: Any,
) -> Any:
    """One image (3, H, W) under a mask (patches,), and one sample of class `label` -> Figure.

    `decoders` are from `load_auxiliary`, `space` is that of `model`; `sampling` goes to
    `sample_steps`. Latents are drawn as the diffusion model gets them, normalised.
    """
    # what the models make of the image, and of noise
    canvas = _Canvas.new()
    with eval_mode(tokenizer, model):
        statistics = TokenStatistics(space.mean, space.std)
        study = study_mask(tokenizer, image, mask, statistics, decoders=decoders)
        points = list(trajectory(model, torch.tensor([label]), seed=seed, **sampling))
        rows = torch.linspace(0, len(points) - 1, min(STATES, len(points))).round().long()
        states = [points[row] for row in rows]
        guesses = [decode_point(point, tokenizer, space)[0] for point in states]
        drawn = decode_point(points[-1], tokenizer, space, show="state")[0]

    # two rows, each with its heading
    canvas.words("The tokenizer", 0.15, 0.24, size=14, weight="bold", ha="left")
    words = "a masked autoencoder (sections 3.1 and 3.2 of the paper)"
    canvas.words(words, 1.75, 0.26, ha="left", color="0.35")
    grid = tokenizer.config.grid
    _draw_encoding(canvas, study, grid, space.normalise(study.latents))
    _draw_decoding(canvas, study, grid, decoders)
    canvas.rule(4.78)
    canvas.words("The diffusion transformer", 0.15, 5.06, size=14, weight="bold", ha="left")
    words = "carries noise to latent tokens of an image, step by step"
    if label_name:
        words += f"; its label here is “{drawable(label_name)}”"
    canvas.words(words, 3.25, 5.08, ha="left", color="0.35")
    _draw_sampling(canvas, states, guesses, drawn)
    return canvas.figure


# The canvas ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Canvas:
    """A white page on which pictures, boxes, arrows and words have places in inches."""

    figure: Any

    @classmethod
    def new(cls) -> "_Canvas":
        """An empty page. Raises ImportError without matplotlib."""
        figure = new_figure(*SIZE)
        figure.set_layout_engine("none")  # everything has its place
        figure.set_facecolor("white")
        return cls(figure)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Inches from the top left -> shares from the bottom left."""
        return x / SIZE[0], 1 - y / SIZE[1]

    def picture(
        self, name: str, pixels: np.ndarray, box: tuple[float, float, float, float], **style: Any
    ) -> None:
        """Pixels (h, w, 3), or values (h, w) with `style`, in a box (x, y, width, height)."""
        x, y, width, height = box
        left, bottom = self.place(x, y + height)
        ax = self.figure.add_axes((left, bottom, width / SIZE[0], height / SIZE[1]), label=name)
        # pixels stay squares, unless there are more of them than the page has dots
        few_pixels = pixels.shape[1] / width < 100
        smooth = "nearest" if few_pixels else "antialiased"
        ax.imshow(pixels, interpolation=smooth, aspect="auto", **style)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set(color="0.75", linewidth=0.8)

    def latents(self, name: str, latents: Tensor, box: tuple[float, float, float, float]) -> None:
        """Normalised latents (N, C) as a heat map: a row a token, blue below 0, red above."""
        values = latents.float().cpu().numpy()
        self.picture(name, values, box, cmap="RdBu_r", vmin=-RANGE, vmax=RANGE)

    def words(self, text: str, x: float, y: float, **style: Any) -> None:
        """A line of text, or several, centred at a place."""
        style = {"size": WORDS, "ha": "center", "va": "center", "color": "0.15"} | style
        self.figure.text(*self.place(x, y), text, parse_math=False, **style)

    def box(self, text: str, box: tuple[float, float, float, float], colour: str) -> None:
        """A network: a rounded box with its name."""
        from matplotlib.patches import FancyBboxPatch

        x, y, width, height = box
        # in shares of the page, which is wider than high: the aspect keeps corners round
        shape = FancyBboxPatch(
            self.place(x, y + height),
            width / SIZE[0],
            height / SIZE[1],
            boxstyle=f"round,pad=0,rounding_size={0.1 / SIZE[0]}",
            mutation_aspect=SIZE[0] / SIZE[1],
            transform=self.figure.transFigure,
            facecolor=(colour, 0.16),
            edgecolor=colour,
            linewidth=1.5,
        )
        self.figure.add_artist(shape)
        self.words(text, x + width / 2, y + height / 2, weight="bold")

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """From one place to another."""
        from matplotlib.patches import FancyArrowPatch

        shape = FancyArrowPatch(
            self.place(*start),
            self.place(*end),
            transform=self.figure.transFigure,
            arrowstyle="-|>,head_length=4,head_width=2.2",
            color="0.3",
            linewidth=1.4,
            shrinkA=0,
            shrinkB=0,
        )
        self.figure.add_artist(shape)

    def rule(self, y: float) -> None:
        """A thin line across."""
        from matplotlib.lines import Line2D

        across = [self.place(0.15, y), self.place(SIZE[0] - 0.15, y)]
        line = Line2D(*zip(*across), color="0.8", linewidth=1, transform=self.figure.transFigure)
        self.figure.add_artist(line)


# The tokenizer ------------------------------------------------------------------------------------

MIDDLE = 2.62  # the height of the chain from image to latents
SIDE = 1.45  # of its pictures
LATENTS = (6.05, MIDDLE - 0.9, 0.85, 1.8)
OUTPUTS = 8.42  # where predictions begin


def _draw_encoding(
    canvas: _Canvas, study: MaskStudy, grid: tuple[int, int], latents: Tensor
) -> None:
    """From the image to latent tokens."""
    down, across = grid
    patch_size = study.image.shape[-2] // down
    # patches with white lines between them, then those that are hidden
    pieces = study.image.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)
    pieces = pieces.permute(1, 2, 0, 3, 4).flatten(0, 1)
    pictures = {
        "image": picture_of(study.image),
        "patches": image_grid(pieces, columns=across, background=0.6),
        "visible": masked_picture(study.image, study.mask, patch_size),
    }
    titles = {
        "image": "image",
        "patches": f"{down * across} patches",
        "visible": f"{study.hidden:.0%} hidden",
    }
    top = MIDDLE - SIDE / 2
    for number, (name, pixels) in enumerate(pictures.items()):
        x = 0.15 + 1.67 * number
        canvas.picture(name, pixels, (x, top, SIDE, SIDE))
        canvas.words(titles[name], x + SIDE / 2, top - 0.16, size=TITLE)
        canvas.arrow((x + SIDE + 0.02, MIDDLE), (x + SIDE + 0.2, MIDDLE))

    canvas.box("encoder", (5.15, MIDDLE - 0.55, 0.7, 1.1), ENCODER)
    canvas.arrow((5.87, MIDDLE), (6.03, MIDDLE))
    canvas.latents("latents", latents, LATENTS)
    x, y, width, height = LATENTS
    tokens, channels = latents.shape
    canvas.words("latent tokens", x + width / 2, y - 0.16, size=TITLE)
    canvas.words(f"{tokens} tokens ×\n{channels} numbers", x + width / 2, y + height + 0.22)
    explanation = (
        "In training 40-60 % of the patches are hidden; the encoder reads the others and writes"
        "\na few tokens. From these alone one decoder paints all pixels, and shallow auxiliary"
        "\ndecoders name features of what was hidden: that guess shapes the latents."
    )
    canvas.words(explanation, 0.15, 4.2, ha="left", color="0.35", linespacing=1.35)


def _draw_decoding(
    canvas: _Canvas,
    study: MaskStudy,
    grid: tuple[int, int],
    decoders: Mapping[str, AuxiliaryDecoder],
) -> None:
    """From latent tokens to pixels and features, each beside its target."""
    rows = {"pixel\ndecoder": (picture_of(study.reconstruction), picture_of(study.image))}
    losses = ["loss on\nall pixels"]
    pictures = target_pictures(study, grid)
    for name in study.targets:
        sides = [pictures[f"{name}: {side}"] for side in ("predicted", "target")]
        losses.append("loss on\nall patches")
        if decoders[name].config.loss_on == "hidden":
            sides = [fade_visible(side, study.mask, grid) for side in sides]
            losses[-1] = "loss on hidden\npatches alone"
        rows[TARGETS.get(name, f"{drawable(name)}\ndecoder")] = sides

    # rows share the height, whatever their number
    size = min(1.18, 3.9 / len(rows) - 0.12)
    top = MIDDLE - (len(rows) * (size + 0.16) - 0.16) / 2
    canvas.words("predicted", OUTPUTS + size / 2, top - 0.16, size=TITLE)
    canvas.words("target", OUTPUTS + 0.12 + 1.5 * size, top - 0.16, size=TITLE)
    x, _, width, _ = LATENTS
    for number, (title, (predicted, target)) in enumerate(rows.items()):
        y = top + number * (size + 0.16)
        middle = y + size / 2
        canvas.box(title, (7.3, middle - 0.28, 0.88, 0.56), PIXELS if number == 0 else AUXILIARY)
        start = MIDDLE + 0.25 * (number - (len(rows) - 1) / 2)
        canvas.arrow((x + width + 0.03, start), (7.27, middle))
        canvas.arrow((8.2, middle), (8.4, middle))
        canvas.words(losses[number], 7.74, middle + 0.46, size=SMALL, color="0.35")
        name = title.replace("\n", " ")
        canvas.picture(f"{name}, predicted", predicted, (OUTPUTS, y, size, size))
        canvas.picture(f"{name}, target", target, (OUTPUTS + 0.12 + size, y, size, size))


def fade_visible(pixels: np.ndarray, mask: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """A picture (H, W, 3) in which patches that are not hidden are nearly white: -> (H, W, 3)."""
    height, width = pixels.shape[:2]
    hidden = mask.cpu().numpy().reshape(*grid, 1)
    hidden = np.kron(hidden, np.ones((height // grid[0], width // grid[1], 1), bool))
    faded = FADED * 255 + (1 - FADED) * pixels
    return np.where(hidden, pixels, faded.round().astype(np.uint8))


# The diffusion transformer ------------------------------------------------------------------------


def _draw_sampling(
    canvas: _Canvas, states: list[TrajectoryPoint], guesses: list[Tensor], drawn: Tensor
) -> None:
    """From noise to latent tokens, what the model takes the end to be, and the sample."""
    top = 5.55
    step = 1.6
    for number, (point, guess) in enumerate(zip(states, guesses)):
        x = 0.3 + step * number
        canvas.latents(f"state at t = {point.t:.2g}", point.state[0], (x, top, 0.72, 1.3))
        words = f"t = {point.t:.2g}"
        if number == 0:
            words = "noise, t = 1"
        elif point is states[-1]:
            words = "latents, t = 0"
        canvas.words(words, x + 0.36, top - 0.16, size=TITLE)
        canvas.picture(f"guess at t = {point.t:.2g}", picture_of(guess), (x, 7.0, 0.72, 0.72))
        # between two states the transformer works
        if point is not states[-1]:
            middle = top + 0.65
            canvas.arrow((x + 0.75, middle), (x + 0.93, middle))
            canvas.box("SiT", (x + 0.95, middle - 0.2, 0.42, 0.4), DIFFUSION)
            canvas.arrow((x + 1.39, middle), (x + 1.57, middle))

    # the last latents, decoded
    x = 0.3 + step * (len(states) - 1) + 0.72
    middle = top + 0.65
    canvas.arrow((x + 0.04, middle), (x + 0.28, middle))
    canvas.box("pixel\ndecoder", (x + 0.3, middle - 0.3, 0.88, 0.6), PIXELS)
    canvas.arrow((x + 1.2, middle), (x + 1.43, middle))
    canvas.picture("sample", picture_of(drawn), (x + 1.45, top, 1.7, 1.7))
    canvas.words("sample", x + 2.3, top - 0.16, size=TITLE)
    words = "below each state: the end of the way, as the model guesses it at that time, decoded"
    canvas.words(words, 0.3, 7.88, ha="left", color="0.35")
