"""Hide patches by ratio or by hand: what does a tokenizer still know, and what do tokens carry?"""

import functools
import html
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from maetok_lab.analysis.masks import (
    MASK_KINDS,
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
from maetok_lab.widgets.front import (
    WRAP,
    Picture,
    Studio,
    cell_grid,
    image_names,
    ipywidgets,
    picked_cell,
    png_bytes,
    take_images,
    token_grid,
    upload_control,
)
from maetok_lab.widgets.latest import Latest
from maetok_lab.widgets.ratio_chart import RatioChart
from maetok_lab.widgets.uploads import read_upload

SMALL = 176  # side of a picture, px
LARGE = 256  # and of the one that is brushed
HELD_OUT = 64  # images for the curve and the statistics of tokens
OWN = -1  # the choice "my own picture"


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
        self._latest = Latest(self.refresh)
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
        package = ipywidgets()
        wide = {"layout": {"width": "330px"}, "style": {"description_width": "110px"}}
        dropdown = functools.partial(package.Dropdown, **wide)
        slider = functools.partial(package.FloatSlider, **wide)
        images = list(zip(self.names, range(len(self.names))))
        return SimpleNamespace(
            # the mask
            image=dropdown(
                options=[*images, ("my own picture", OWN)], value=self.index, description="image"
            ),
            upload=upload_control("my own picture"),
            kind=dropdown(options=MASK_KINDS, value=self.kind, description="hide patches"),
            ratio=slider(value=self.ratio, min=0, max=1, step=0.05, description="mask ratio"),
            seed=package.BoundedIntText(
                value=self.seed, min=0, max=9999, description="mask seed", **wide
            ),
            touch=package.ToggleButtons(
                options=[("hide", "brush"), ("ask", "pick")],
                description="a click on a patch will",
                style={"description_width": "150px", "button_width": "60px"},
            ),
            patches=cell_grid(
                *self.grid,
                size=LARGE,
                label="image patches: brush to hide, or pick one to ask about",
            ),
            # the tokens, and what is done to them
            tokens=cell_grid(
                *token_grid(len(self.whole)),
                size=SMALL,
                mode="pick",
                label="latent tokens: pick those to ask about or to change",
            ),
            surgery=dropdown(options=anatomy.SURGERIES, description="surgery"),
            amount=slider(value=0.5, min=0, max=2, step=0.05, description="amount"),
            other=dropdown(options=images, value=self.other, description="other image"),
        )

    @functools.cached_property
    def pictures(self) -> dict[str, Picture]:
        """Every picture of the view by name."""
        titles = {"reconstruction": "reconstruction", "error": f"error, 0 to {ERROR_LIMIT:g}"}
        names = list(target_pictures(self.study, self.grid))  # these are their own titles
        titles |= dict(zip(names, names))
        titles |= {"draws": "where the last picked token draws", "operated": "after surgery"}
        return {name: Picture(title, size=SMALL) for name, title in titles.items()}

    @functools.cached_property
    def view(self) -> Any:
        """The widget."""
        package = ipywidgets()
        controls = self.controls
        self.message = package.HTML()  # about an uploaded picture
        self.summary = package.HTML()  # of the study, in numbers
        self._tokens_title = package.HTML()
        self.chart = RatioChart(self.curve, self.study, perceptual=self.distance is not None)
        self._observe()

        # four rows: what is hidden, the image with all that depends on the mask, tokens, surgery
        *results, draws, operated = [picture.box for picture in self.pictures.values()]
        image = package.VBox([controls.touch, controls.patches, self.summary])
        tokens = package.VBox([self._tokens_title, controls.tokens], layout={"width": "270px"})
        chart = package.Box([self.chart.figure], layout={"width": "460px"})
        surgery = package.VBox([controls.surgery, controls.amount, controls.other])
        rows = [
            [controls.image, controls.kind, controls.ratio, controls.seed, controls.upload],
            [image, *results],
            [tokens, draws, chart],
            [surgery, operated],
        ]
        head, *body = [package.HBox(row, layout=WRAP) for row in rows]
        self.refresh()
        return package.VBox([head, self.message, *body])

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
            self._latest.ask()

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
        self._latest.ask()

    def _on_mask(self, _: Any) -> None:
        self.kind = self.controls.kind.value
        self.ratio = self.controls.ratio.value
        self.seed = self.controls.seed.value
        self.draw()
        self._latest.ask()

    def _on_brush(self, change: Any) -> None:
        # the same patches: our own mask, sent to the grid, came back
        if set(change["new"]) != set(self.mask.nonzero()[:, 0].tolist()):
            self.brush(change["new"])
            self._latest.ask()

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
        self._latest.ask()

    # Pictures -------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Show the present state."""
        study = self.study
        pictures = self.pictures
        patches = self.controls.patches
        pixels = masked_picture(study.image, study.mask, self.patch_size)
        patches.picture = png_bytes(pixels, size=LARGE)
        patches.hidden = study.mask.nonzero()[:, 0].tolist()

        # a picture that did not change is neither encoded nor sent
        pictures["reconstruction"].show(picture_of(study.reconstruction))
        pictures["error"].show(heat_picture(study.error, limit=ERROR_LIMIT))
        for name, pixels in target_pictures(study, self.grid).items():
            pictures[name].show(pixels)
        pictures["operated"].show(picture_of(self.operated))
        self._show_tokens()

        words = f"{int(study.mask.sum())} of {len(study.mask)} patches hidden: {study.psnr:.2f} dB"
        if study.perceptual is not None:
            words += f", perceptual distance {study.perceptual:.2f}"
        self.summary.value = words
        self.chart.show(self.curve, study)

    def _show_tokens(self) -> None:
        """Each token's part in the picked patch, or how far it moved; and where one draws."""
        tokens = self.controls.tokens
        patch = picked_cell(self.controls.patches)
        if patch is None:
            values = self.study.moved
            title = "how far the tokens moved: brightest"
        else:
            values = self.occlusion[:, patch]
            title = f"tokens that carry patch {patch}: brightest"
        title = f"{title} {float(values.max()):.2f} std"
        self._tokens_title.value = f"<b style='font-size:12px'>{title}</b>"
        tokens.picture = png_bytes(heat_picture(values.view(tokens.rows, -1)), size=SMALL)

        # where the last picked token draws in the whole image; black without one
        token = picked_cell(tokens)
        if token is None:
            drawn = torch.zeros(self.grid)
            title = "pick a token: where it draws"
        else:
            drawn = self.footprint[token].view(self.grid)
            title = f"where token {token} draws"
        self.pictures["draws"].show(heat_picture(drawn), title)
