"""Hide patches by ratio or by hand: what does a tokenizer still know, and what do tokens carry?"""

import functools
import html
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.masks import (
    Distance,
    MaskStudy,
    draw_masks,
    image_targets,
    ratio_curve,
    study_mask,
)
from maetok_lab.data.images import ImageSource
from maetok_lab.inference import device_of
from maetok_lab.plots.masks import (
    ERROR_LIMIT,
    heat_picture,
    masked_picture,
    picture_of,
    plot_mask_study,
    target_pictures,
)
from maetok_lab.tokenizer import anatomy
from maetok_lab.tokenizer.auxiliary import AuxiliaryDecoder
from maetok_lab.tokenizer.model import Tokenizer
from maetok_lab.widgets.charts import line_chart
from maetok_lab.widgets.front import (
    FULL,
    QUARTER,
    Picture,
    Studio,
    caption,
    image_names,
    ipywidgets,
    kernel_line,
    picked_cell,
    png_bytes,
    take_images,
    token_grid,
)
from maetok_lab.widgets.mask_controls import HELD_OUT, LARGE, OWN, WIDTH, mask_controls
from maetok_lab.widgets.ratio_chart import ratio_charts
from maetok_lab.widgets.uploads import read_upload

CHART = (380, 240)  # px
ROW = {"width": "100%", "max_width": f"{WIDTH}px"}
COLUMN = QUARTER | {"max_width": f"{LARGE}px"}  # as a `Picture`'s


class MaskStudio(Studio):
    """One image of `images` (an `ImageSource`, or (n, 3, H, W)) under a mask, for a `Tokenizer`.

    Attributes to read: `image`, `mask`, `study` (a `MaskStudy`), `curve`, `surgery`, `operated`
    (the image after surgery). `decoders` are from `load_auxiliary`, `distance` from
    `make_perceptual`. What it shows is computed in analysis.masks and tokenizer.anatomy.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        images: ImageSource | Tensor,
        *,
        decoders: Mapping[str, AuxiliaryDecoder] | None = None,
        distance: Distance | None = None,
        ratio: float = 0.5,
        kind: str = "random",
        seed: int = 0,
    ):
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(
                "MaskStudio hides patches from a Tokenizer's encoder; "
                f"a {type(tokenizer).__name__} sees all"
            )
        self.tokenizer = tokenizer.eval()
        self.images = images
        self.decoders = decoders or {}
        self.distance = distance
        self.names = image_names(images)
        self.device = device_of(tokenizer)
        self.grid = tokenizer.config.grid
        self.patch_size = tokenizer.config.patch_size

        # the state that controls change
        self.index = 0  # of the image
        self.ratio = ratio
        self.kind = kind
        self.seed = seed
        self.surgery = anatomy.Surgery()
        self.other = 0  # the image that surgery takes tokens from

        # held-out images, evenly spaced: a source may be sorted by class
        indices = torch.linspace(0, len(images) - 1, min(HELD_OUT, len(images))).long()
        self.held_out = take_images(images, indices).to(self.device)
        with torch.inference_mode():
            latents = torch.cat([tokenizer.encode(part) for part in self.held_out.split(64)])
        self.statistics = anatomy.token_statistics(latents)
        self._curves: dict[str, pd.DataFrame] = {}  # by kind of mask
        self.computed = 0  # reconstructions so far
        self.take(take_images(images, [0])[0])

    # State ----------------------------------------------------------------------------------------

    def take(self, image: Tensor) -> None:
        """Study another image (3, H, W), under a mask drawn anew."""
        self.image = image.to(self.device)
        with torch.inference_mode():
            self.whole = self.tokenizer.encode(self.image[None])[0]
        self.targets = image_targets(self.decoders, self.image)
        self._occlusion = None  # made when it is next read, as the footprint
        self._footprint = None
        self.draw()

    def draw(self) -> None:
        """The mask of the present ratio, kind and seed."""
        self.mask = draw_masks(
            self.image[None], self.patch_size, kind=self.kind, ratio=self.ratio, seed=self.seed
        )[0]
        self._study = None  # made when it is next read

    def brush(self, hidden: Sequence[int]) -> None:
        """The mask that hides exactly these patches."""
        self.mask = torch.zeros_like(self.mask)
        self.mask[list(hidden)] = True
        self._study = None

    @property
    def study(self) -> MaskStudy:
        """Everything about the image under its mask."""
        if self._study is None:
            self.computed += 1
            self._study = study_mask(
                self.tokenizer,
                self.image,
                self.mask,
                self.statistics,
                whole=self.whole,
                decoders=self.decoders,
                targets=self.targets,
                distance=self.distance,
            )
        return self._study

    @property
    def curve(self) -> pd.DataFrame:
        """PSNR and perceptual distance of held-out images by ratio, for this kind of mask."""
        if self.kind not in self._curves:
            self._curves[self.kind] = ratio_curve(
                self.tokenizer, self.held_out, kind=self.kind, distance=self.distance
            )
        return self._curves[self.kind]

    @property
    def occlusion(self) -> Tensor:
        """Which patches move which tokens, for the whole image: (N, patches)."""
        # once an image: it costs one encoding a patch
        if self._occlusion is None:
            self._occlusion = anatomy.occlusion(
                self.tokenizer, self.image, patch_size=self.patch_size, std=self.statistics.std
            )
        return self._occlusion

    @property
    def footprint(self) -> Tensor:
        """Where which token draws, for the whole image: (N, patches)."""
        # once an image: it costs one decoding a token
        if self._footprint is None:
            self._footprint = anatomy.footprint(
                self.tokenizer, self.whole, self.statistics.mean, patch_size=self.patch_size
            )
        return self._footprint

    @property
    @torch.inference_mode()
    def operated(self) -> Tensor:
        """The image that the masked image's tokens draw after `surgery`. -> (3, H, W)"""
        if self.surgery.kind == "none":
            return self.study.reconstruction
        image = take_images(self.images, [self.other]).to(self.device)
        other = self.tokenizer.encode(image)[0]  # (N, C)
        latents = anatomy.operate(self.study.latents, self.surgery, self.statistics, other=other)
        return self.tokenizer.decode(latents[None])[0]

    def twin(self) -> Any:
        """The present state as a matplotlib figure."""
        return plot_mask_study(self.study, self.grid, curve=self.curve)

    # View -----------------------------------------------------------------------------------------

    @functools.cached_property
    def controls(self) -> SimpleNamespace:
        """Every control by name."""
        return mask_controls(self)

    @functools.cached_property
    def pictures(self) -> dict[str, Picture]:
        """Every picture of the view by name."""
        return {name: Picture(*state, size=LARGE) for name, state in self._states().items()}

    def _states(self) -> dict[str, tuple[np.ndarray, str, str]]:
        """Pixels, title and number of each picture."""
        study = self.study
        error = heat_picture(study.error, limit=ERROR_LIMIT)
        states = {
            "image": (picture_of(study.image), "image", ""),
            "reconstruction": (
                picture_of(study.reconstruction),
                "reconstruction",
                f"{study.psnr:.2f} dB",
            ),
            "error": (error, "error", f"0 to {ERROR_LIMIT:g}"),
        }
        for title, pixels in target_pictures(study, self.grid).items():
            states[title] = (pixels, title, "")
        # these two say something once tokens are picked or changed
        operated = picture_of(self.operated)
        states["operated"] = (operated, "after surgery", self.surgery.kind)
        token = picked_cell(self.controls.tokens)
        heat = torch.zeros(self.grid)
        if token is not None:
            heat = self.footprint[token].view(self.grid)
        states["draws"] = (heat_picture(heat), f"where token {token} draws", "")
        return states

    @functools.cached_property
    def view(self) -> Any:
        """The widget."""
        package = ipywidgets()
        controls = self.controls
        pictures = {name: picture.box for name, picture in self.pictures.items()}
        self.message = package.HTML()  # about an uploaded picture
        self.summary = package.HTML(layout=FULL)  # over the image that is brushed
        self._tokens_title = package.HTML(layout=FULL)
        specs = ratio_charts(self.curve, self.study, size=CHART)
        self.charts = {name: line_chart(spec) for name, spec in specs.items()}
        self._observe()
        self.refresh()

        # what is hidden, and what comes of it; the tokens beside what the mask costs; the targets
        board = package.VBox([self.summary, controls.patches, controls.touch], layout=COLUMN)
        tokens = package.VBox([self._tokens_title, controls.tokens], layout=COLUMN)
        surgery = package.VBox([controls.surgery, controls.amount, controls.other])
        rows = [
            [controls.image, controls.kind, controls.seed, controls.upload],
            [controls.ratio],
            [pictures.pop("image"), board, pictures.pop("reconstruction"), pictures.pop("error")],
            [tokens, *[package.Box([widget]) for widget in self.charts.values()]],
            [pictures.pop("draws"), pictures.pop("operated"), surgery],
            list(pictures.values()),
        ]
        head, *body = [package.HBox(row, layout=ROW) for row in rows]
        head.layout.flex_flow = "row wrap"
        return package.VBox([kernel_line(), head, self.message, *body])

    def _observe(self) -> None:
        controls = self.controls
        controls.image.observe(self._on_image, "value")
        controls.upload.observe(self._on_upload, "serial")
        for control in (controls.kind, controls.ratio, controls.seed):
            control.observe(self._on_mask, "value")
        controls.patches.observe(self._on_brush, "hidden")
        controls.patches.observe(lambda _: self._show_tokens(), "selection")
        controls.tokens.observe(lambda _: self._on_tokens(), "selection")
        controls.touch.observe(self._on_touch, "value")
        for control in (controls.surgery, controls.amount, controls.other):
            control.observe(lambda _: self._on_tokens(), "value")

    def _on_image(self, change: Any) -> None:
        self.message.value = ""  # what was said of an uploaded picture
        if change["new"] != OWN:
            self.index = change["new"]
            self.take(take_images(self.images, [self.index])[0])
            self.refresh()

    def _on_upload(self, _: Any) -> None:
        upload = self.controls.upload
        try:
            image = read_upload(
                bytes(upload.content),
                name=upload.name,
                length=upload.length,
                limit=upload.limit,
                image_size=self.image.shape[-1],
            )
        except ValueError as problem:
            self.message.value = (
                f"<p role='alert'><b>Not taken:</b> {html.escape(str(problem))}</p>"
            )
            return
        # the dropdown follows the upload; `_on_image` then takes no image
        self.controls.image.value = OWN
        self.message.value = f"<p role='status'>{html.escape(upload.name)}: its middle square</p>"
        self.take(image)
        self.refresh()

    def _on_mask(self, _: Any) -> None:
        self.kind = self.controls.kind.value
        self.ratio = self.controls.ratio.value
        self.seed = self.controls.seed.value
        self.draw()
        self.refresh()

    def _on_brush(self, change: Any) -> None:
        # the same patches: our own mask, sent to the grid, came back
        if set(change["new"]) != set(self.mask.nonzero()[:, 0].tolist()):
            self.brush(change["new"])
            self.refresh()

    def _on_touch(self, change: Any) -> None:
        self.controls.patches.mode = change["new"]
        if change["new"] == "brush":  # no patch is asked about: the tokens show how far they moved
            self.controls.patches.selection = []

    def _on_tokens(self) -> None:
        controls = self.controls
        self.surgery = anatomy.Surgery(
            kind=controls.surgery.value,
            tokens=tuple(controls.tokens.selection),
            amount=controls.amount.value,
            seed=self.seed,
        )
        self.other = controls.other.value
        self.refresh()

    # Pictures -------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Show the present state."""
        study = self.study
        patches = self.controls.patches
        patches.picture = self.seen_png()
        patches.hidden = study.mask.nonzero()[:, 0].tolist()
        hidden = f"{int(study.mask.sum())} of {len(study.mask)} hidden"
        self.summary.value = caption(hidden, f"{study.hidden:.0%}")
        for name, spec in ratio_charts(self.curve, study, size=CHART).items():
            self.charts[name].spec = spec
        self._show_tokens()

    def seen_png(self) -> bytes:
        """What the encoder sees."""
        pixels = masked_picture(self.study.image, self.study.mask, self.patch_size)
        return png_bytes(pixels, size=LARGE)

    def tokens_png(self, values: Tensor) -> bytes:
        """A number a token (N,) as a picture with a pixel a token, enlarged."""
        grid = token_grid(len(values), wide=True)
        return png_bytes(heat_picture(values.view(grid)), size=LARGE)

    def _moved_tokens(self) -> tuple[Tensor, str]:
        """Each token's part in the picked patch, or how far it moved: (N,), and what it is."""
        patch = picked_cell(self.controls.patches)
        if patch is None:
            return self.study.moved, "how far tokens moved"
        return self.occlusion[:, patch], f"tokens that carry patch {patch}"

    def _show_tokens(self) -> None:
        """The tokens, and all pictures: one that did not change is neither encoded nor sent."""
        tokens = self.controls.tokens
        values, title = self._moved_tokens()
        self._tokens_title.value = caption(title, f"up to {float(values.max()):.2f} std")
        tokens.picture = self.tokens_png(values)
        for name, state in self._states().items():
            self.pictures[name].show(*state)
        # a picture that says nothing yet is not shown
        pictures = self.pictures
        for name, empty in {
            "draws": picked_cell(tokens) is None,
            "operated": self.surgery.kind == "none",
        }.items():
            pictures[name].box.layout.visibility = "hidden" if empty else "visible"
        self.moved()
