"""Hide patches by ratio or by hand and see what the tokenizer still knows; ask its tokens what they carry, and change them."""

import functools
import math
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
from maetok_lab.tokenizer.anatomy import (
    SURGERIES,
    Surgery,
    footprint,
    occlusion,
    operate,
    token_statistics,
)
from maetok_lab.tokenizer.auxiliary import AuxiliaryDecoder
from maetok_lab.tokenizer.model import Tokenizer
from maetok_lab.widgets.front import (
    Picture,
    Studio,
    cell_grid,
    escaped,
    image_names,
    ipywidgets,
    png_bytes,
    take_images,
    upload_control,
)
from maetok_lab.widgets.latest import Latest
from maetok_lab.widgets.ratio_chart import RatioChart
from maetok_lab.widgets.uploads import read_upload

SMALL, LARGE = 176, 256  # sides of pictures, px
OWN = -1  # the choice "my own picture"


class MaskStudio(Studio):
    """One image of `images` (an `ImageSource`, or a tensor (n, 3, H, W)) under a mask, for a `Tokenizer` of ours.

    Attributes to read: `image`, `mask`, `study` (a `MaskStudy`), `curve`, `surgery`, `operated` (the image after surgery).
    `decoders` are from `load_auxiliary`, `distance` from `make_perceptual`; `held_out` images make the curve and the tokens'
    statistics. What it computes is in analysis.masks and tokenizer.anatomy; here it is only wired to controls.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        images: ImageSource | Tensor,
        *,
        decoders: Mapping[str, AuxiliaryDecoder] | None = None,
        distance: Distance | None = None,
        names: Sequence[str] | None = None,
        held_out: int = 64,
        ratio: float = 0.5,
        kind: str = "random",
        seed: int = 0,
    ):
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(
                f"MaskStudio hides patches from a Tokenizer's encoder; a {type(tokenizer).__name__} sees all"
            )
        self.tokenizer, self.decoders, self.distance = tokenizer.eval(), decoders or {}, distance
        self.images, self.names = images, list(names or image_names(images))
        self.device = device_of(tokenizer)
        self.grid, self.patch_size = tokenizer.config.grid, tokenizer.config.patch_size
        self.ratio, self.kind, self.seed, self.index = ratio, kind, seed, 0
        self.held_out = take_images(
            images, torch.linspace(0, len(images) - 1, min(held_out, len(images))).long()
        ).to(self.device)
        with torch.inference_mode():
            encoded = torch.cat([tokenizer.encode(part) for part in self.held_out.split(64)])
        self.statistics = token_statistics(encoded)
        self.surgery, self.other = Surgery(), 0
        self._curves: dict[str, pd.DataFrame] = {}
        self._latest = Latest(self.refresh)
        self.computed = 0  # reconstructions so far
        self.take(take_images(images, torch.tensor([0]))[0])

    # State ------------------------------------------------------------------------------------------------------------

    def take(self, image: Tensor) -> None:
        """Study another image (3, H, W), under a mask drawn anew."""
        self.image = image.to(self.device)
        with torch.inference_mode():
            self.whole = self.tokenizer.encode(self.image[None])[0]
        self.targets = image_targets(self.decoders, self.image)
        self._occlusion = self._footprint = None
        self.draw()

    def draw(self) -> None:
        """The mask of the present ratio, kind and seed."""
        asked = {"kind": self.kind, "ratio": self.ratio, "seed": self.seed}
        self.mask = draw_masks(self.image[None], self.patch_size, **asked)[0]
        self._study = None

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
        """PSNR and perceptual distance of held-out images against the ratio, for the present kind of mask."""
        if self.kind not in self._curves:
            self._curves[self.kind] = ratio_curve(
                self.tokenizer, self.held_out, kind=self.kind, distance=self.distance
            )
        return self._curves[self.kind]

    @property
    def occlusion(self) -> Tensor:
        """Which patches move which tokens, for the whole image: (N, patches)."""
        if self._occlusion is None:
            found = {"patch_size": self.patch_size, "std": self.statistics.std}
            self._occlusion = occlusion(self.tokenizer, self.image, **found)
        return self._occlusion

    @property
    def footprint(self) -> Tensor:
        """Where which token draws, for the whole image: (N, patches)."""
        if self._footprint is None:
            self._footprint = footprint(
                self.tokenizer, self.whole, self.statistics.mean, patch_size=self.patch_size
            )
        return self._footprint

    @property
    @torch.inference_mode()
    def operated(self) -> Tensor:
        """The image that the masked image's tokens draw after `surgery`. -> (3, H, W)"""
        if self.surgery.kind == "none":
            return self.study.reconstruction
        other = self.tokenizer.encode(
            take_images(self.images, torch.tensor([self.other])).to(self.device)
        )[0]
        changed = operate(self.study.latents, self.surgery, self.statistics, other=other)
        return self.tokenizer.decode(changed[None])[0]

    def twin(self) -> Any:
        """The present state as a matplotlib figure."""
        return plot_mask_study(self.study, self.grid, curve=self.curve)

    # View -------------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def controls(self) -> SimpleNamespace:
        """Every control by name."""
        package = ipywidgets()
        wide = {"layout": {"width": "330px"}, "style": {"description_width": "110px"}}
        chosen = [(name, index) for index, name in enumerate(self.names)]
        down, across = self.grid
        shape = _token_grid(len(self.whole))
        return SimpleNamespace(
            image=package.Dropdown(
                options=[*chosen, ("my own picture", OWN)],
                value=self.index,
                description="image",
                **wide,
            ),
            upload=upload_control("my own picture"),
            kind=package.Dropdown(
                options=MASK_KINDS, value=self.kind, description="hide patches", **wide
            ),
            ratio=package.FloatSlider(
                value=self.ratio, min=0, max=1, step=0.05, description="mask ratio", **wide
            ),
            seed=package.BoundedIntText(
                value=self.seed, min=0, max=9999, description="mask seed", **wide
            ),
            touch=package.ToggleButtons(
                options=[("hide", "brush"), ("ask", "pick")],
                description="a click on a patch will",
                style={"description_width": "150px", "button_width": "60px"},
            ),
            patches=cell_grid(
                down,
                across,
                size=LARGE,
                label="image patches: brush to hide, or pick one to ask about",
            ),
            tokens=cell_grid(
                *shape,
                size=SMALL,
                mode="pick",
                label="latent tokens: pick those to ask about or to change",
            ),
            surgery=package.Dropdown(options=SURGERIES, description="surgery", **wide),
            amount=package.FloatSlider(
                value=0.5, min=0, max=2, step=0.05, description="amount", **wide
            ),
            other=package.Dropdown(
                options=chosen, value=self.other, description="other image", **wide
            ),
        )

    @functools.cached_property
    def pictures(self) -> dict[str, Picture]:
        """Every picture of the view by name."""
        titles = {"reconstruction": "reconstruction", "error": f"error, 0 to {ERROR_LIMIT:g}"}
        titles |= {name: name for name in target_pictures(self.study, self.grid)}
        titles |= {"draws": "where the last picked token draws", "operated": "after surgery"}
        return {name: Picture(title, size=SMALL) for name, title in titles.items()}

    @functools.cached_property
    def view(self) -> Any:
        """The widget."""
        package, see, show = ipywidgets(), self.controls, self.pictures
        self.message, self.told = package.HTML(), package.HTML()
        self.chart = RatioChart(self.curve, self.study, perceptual=self.distance is not None)
        self._observe()
        wrap = {
            "layout": {"flex_flow": "row wrap", "align_items": "flex-start", "max_width": "1160px"}
        }
        seen = [show[name].box for name in show if name not in ("draws", "operated")]
        self._tokens_title = package.HTML()
        view = package.VBox(
            [
                package.HBox([see.image, see.kind, see.ratio, see.seed, see.upload], **wrap),
                self.message,
                package.HBox([package.VBox([see.touch, see.patches, self.told]), *seen], **wrap),
                package.HBox(
                    [
                        package.VBox([self._tokens_title, see.tokens], layout={"width": "270px"}),
                        show["draws"].box,
                        package.Box([self.chart.figure], layout={"width": "460px"}),
                    ],
                    **wrap,
                ),
                package.HBox(
                    [package.VBox([see.surgery, see.amount, see.other]), show["operated"].box],
                    **wrap,
                ),
            ]
        )
        self.refresh()
        return view

    def _observe(self) -> None:
        see = self.controls
        see.image.observe(self._on_image, "value")
        see.upload.observe(self._on_upload, "serial")
        for control in (see.kind, see.ratio, see.seed):
            control.observe(self._on_mask, "value")
        see.patches.observe(self._on_brush, "hidden")
        see.patches.observe(lambda _: self._show_tokens(), "chosen")
        see.tokens.observe(lambda _: self._on_tokens(), "chosen")
        see.touch.observe(self._on_touch, "value")
        for control in (see.surgery, see.amount, see.other):
            control.observe(lambda _: self._on_tokens(), "value")

    def _on_image(self, change: Any) -> None:
        self.message.value = ""
        if change["new"] != OWN:
            self.index = change["new"]
            self.take(take_images(self.images, torch.tensor([self.index]))[0])
            self._latest.ask()

    def _on_upload(self, _: Any) -> None:
        sent = self.controls.upload
        about = {"name": sent.name, "length": sent.length, "limit": sent.limit}
        try:
            image = read_upload(bytes(sent.content), image_size=self.image.shape[-1], **about)
        except ValueError as problem:
            self.message.value = f"<p role='alert'><b>Not taken:</b> {escaped(str(problem))}</p>"
            return
        self.controls.image.value = OWN
        self.message.value = f"<p role='status'>{escaped(sent.name)}: its middle square</p>"
        self.take(image)
        self._latest.ask()

    def _on_mask(self, _: Any) -> None:
        see = self.controls
        self.kind, self.ratio, self.seed = see.kind.value, see.ratio.value, see.seed.value
        self.draw()
        self._latest.ask()

    def _on_brush(self, change: Any) -> None:
        if set(change["new"]) != set(
            self.mask.nonzero()[:, 0].tolist()
        ):  # else this is our own mask, sent to the grid
            self.brush(change["new"])
            self._latest.ask()

    def _on_touch(self, change: Any) -> None:
        self.controls.patches.mode = change["new"]
        if change["new"] == "brush":
            self.controls.patches.chosen = []

    def _on_tokens(self) -> None:
        see = self.controls
        tokens = tuple(see.tokens.chosen)
        self.surgery = Surgery(
            kind=see.surgery.value, tokens=tokens, amount=see.amount.value, seed=self.seed
        )
        self.other = see.other.value
        self._latest.ask()

    # Pictures ---------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Show the present state."""
        study, show, see = self.study, self.pictures, self.controls
        see.patches.picture = png_bytes(
            masked_picture(study.image, study.mask, self.patch_size), size=LARGE
        )
        see.patches.hidden = study.mask.nonzero()[:, 0].tolist()
        show["reconstruction"].show(picture_of(study.reconstruction))
        show["error"].show(heat_picture(study.error, limit=ERROR_LIMIT))
        for name, pixels in target_pictures(study, self.grid).items():
            show[name].show(pixels)
        show["operated"].show(picture_of(self.operated))
        far = "" if study.perceptual is None else f", perceptual distance {study.perceptual:.2f}"
        self.told.value = (
            f"{int(study.mask.sum())} of {len(study.mask)} patches hidden: {study.psnr:.2f} dB{far}"
        )
        self._show_tokens()
        self.chart.show(self.curve, study)

    def _show_tokens(self) -> None:
        """How far the tokens moved, or which of them carry the picked patch; and where the last picked token draws."""
        see, patch = self.controls, next(iter(self.controls.patches.chosen[-1:]), None)
        if patch is not None:
            patch = see.patches.last if see.patches.last in see.patches.chosen else patch
            values, title = self.occlusion[:, patch], f"tokens that carry patch {patch}: brightest"
        else:
            values, title = self.study.moved, "how far the tokens moved: brightest"
        self._tokens_title.value = (
            f"<b style='font-size:12px'>{title} {float(values.max()):.2f} std</b>"
        )
        see.tokens.picture = png_bytes(heat_picture(values.view(see.tokens.rows, -1)), size=SMALL)
        token = see.tokens.last if see.tokens.last in see.tokens.chosen else None
        drawn = self.footprint[token] if token is not None else torch.zeros(math.prod(self.grid))
        title = (
            f"where token {token} draws" if token is not None else "pick a token: where it draws"
        )
        self.pictures["draws"].show(heat_picture(drawn.view(self.grid)), title)


def _token_grid(count: int) -> tuple[int, int]:
    """Rows and columns for `count` cells, as square as it goes."""
    rows = next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
    return rows, count // rows
