"""Hide part of a picture: a masked and a plain tokenizer side by side, on one screen."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maetok_lab.analysis.masks import (
    HIDE_ORDERS,
    hide_order,
    masks_along,
    reconstruct_masked,
    study_mask,
)
from maetok_lab.data.images import ImageSource
from maetok_lab.hints import check_choice
from maetok_lab.inference import device_of
from maetok_lab.pictures import to_uint8
from maetok_lab.plots.masks import PAIR, picture_of, plot_mask_pair, target_pictures
from maetok_lab.tokenizer import anatomy
from maetok_lab.tokenizer.auxiliary import AuxiliaryDecoder
from maetok_lab.tokenizer.model import Tokenizer
from maetok_lab.widgets.front import (
    UPLOAD_LIMIT,
    PanelStudio,
    as_png,
    image_names,
    take_images,
    token_grid,
)
from maetok_lab.widgets.mask_controls import HELD_OUT, OWN
from maetok_lab.widgets.panel import panel
from maetok_lab.widgets.uploads import read_upload

PAGES_OWN = ("choice", "step", "brushed", "question", "upload")  # what the page sets
PLAIN = (
    "The same architecture, trained on as many images by their pixels alone: nothing was hidden,"
    " and there were no HOG or semantic targets."
)
TARGETS = {"hog": "edges (HOG)", "semantic": "features, as colours"}
TITLES = {
    "title": "Hide part of the picture. What does the model still know?",
    "chart_title": "This picture: how good the reconstruction is, the more is hidden",
    "deeper_title": "Look deeper: what the tokens say of edges and features that are hidden",
}


class MaskDemo(PanelStudio):
    """Two tokenizers of one image size and patch size on the first `count` images, evenly spaced.

    `trained_ratios` is what the masked one's training hid; `decoders` are its auxiliary decoders.
    Attributes to read: `image`, `mask`, `study`. Raises ValueError for two tokenizers that do not
    cut images alike.
    """

    def __init__(
        self,
        masked: Tokenizer,
        plain: Tokenizer,
        images: ImageSource | Tensor,
        *,
        decoders: Mapping[str, AuxiliaryDecoder] | None = None,
        trained_ratios: tuple[float, float] = (0.4, 0.6),
        count: int = 12,
        ratio: float = 0.5,
        kind: str = "scattered",
        num_ratios: int = 33,
        seed: int = 0,
    ):
        cuts = [(net.config.image_size, net.config.patch_size) for net in (masked, plain)]
        if cuts[0] != cuts[1]:
            raise ValueError(
                "both tokenizers are shown one mask, so they need one image size and patch size,"
                f" not {cuts[0]} and {cuts[1]}"
            )
        check_choice(kind, HIDE_ORDERS, "order of hiding")
        self.tokenizers = {"masked": masked.eval(), "plain": plain.eval()}
        self.decoders = dict(decoders or {})
        self.device = device_of(masked)
        self.trained_ratios = trained_ratios
        self.seed = seed
        self.num_ratios = num_ratios
        self.step = round(ratio * (num_ratios - 1))
        self.kind = kind

        # what can be chosen, and held-out images, whose mean takes a token's place
        indices = torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()
        self.pictures = take_images(images, indices).to(self.device)
        names = image_names(images)
        self.names = [names[index].partition(": ")[2] for index in indices.tolist()]
        spread = torch.linspace(0, len(images) - 1, min(HELD_OUT, len(images))).long()
        with torch.inference_mode():
            latents = masked.encode(take_images(images, spread).to(self.device))
        self.statistics = anatomy.token_statistics(latents)
        self.index = 0
        self.brushed: list[int] = []  # a mask by hand, one number a patch; empty without one
        self.take(self.pictures[0])

    # State ----------------------------------------------------------------------------------------

    def take(self, image: Tensor) -> None:
        """Study another image (3, H, W), in the present order of hiding."""
        self.image = image.to(self.device)
        patch_size = self.tokenizers["masked"].config.patch_size
        order = hide_order(self.image, patch_size, kind=self.kind, seed=self.seed)
        self.masks = masks_along(order, self.num_ratios)
        self.study = self._study()

    @property
    def mask(self) -> Tensor:
        """What is hidden now: (patches,) bool, True = hidden."""
        if self.brushed:
            return torch.tensor(self.brushed, dtype=torch.bool)
        return self.masks[self.step]

    def reconstruct(self, masks: Tensor) -> tuple[np.ndarray, list[list[float]]]:
        """Both tokenizers under masks (n, patches): one picture of 2 rows and n columns, PSNR."""
        rows = []
        scores = []
        for tokenizer in self.tokenizers.values():
            images, psnr = reconstruct_masked(tokenizer, self.image, masks)
            rows.append(torch.cat(list(to_uint8(images).movedim(1, -1)), dim=1))
            scores.append(psnr.tolist())
        return torch.cat(rows).cpu().numpy(), scores

    @torch.inference_mode()
    def _study(self) -> dict[str, Any]:
        """All ratios of the present image, as the page takes them."""
        sheet, psnr = self.reconstruct(self.masks)
        masked = self.tokenizers["masked"]
        footprint = anatomy.footprint(
            masked,
            masked.encode(self.image[None])[0],
            self.statistics.mean,
            patch_size=masked.config.patch_size,
        )
        # the strongest place of each token at 255
        levels = (255 * footprint / footprint.amax(1, keepdim=True).clamp(min=1e-9)).round()
        return {
            "original": as_png(picture_of(self.image)),
            "sheet": as_png(sheet),
            "masks": self.masks.to(torch.uint8).numpy().tobytes(),
            "hidden": self.masks.float().mean(1).tolist(),
            "psnr": psnr,
            "footprint": levels.to(torch.uint8).cpu().numpy().tobytes(),
        }

    def answer(self) -> dict[str, Any]:
        """What both tokenizers make of the mask that was brushed."""
        sheet, psnr = self.reconstruct(self.mask[None])
        side_by_side = np.concatenate(np.split(sheet, 2), axis=1)
        scores = [row[0] for row in psnr]
        return {"mask": self.brushed, "pictures": as_png(side_by_side), "psnr": scores}

    def deeper(self) -> dict[str, Any]:
        """What the auxiliary decoders predict at the present mask, and their targets, in a row."""
        masked = self.tokenizers["masked"]
        mask = self.mask.to(self.device)
        study = study_mask(masked, self.image, mask, self.statistics, decoders=self.decoders)
        # all at one size in a row, which the page cuts up
        side = 192
        strip = []
        titles = []
        for title, pixels in target_pictures(study, masked.config.grid).items():
            scale = max(1, side // max(pixels.shape[:2]))
            large = pixels.repeat(scale, 0).repeat(scale, 1)[:side, :side]
            strip.append(np.pad(large, [(0, side - size) for size in large.shape[:2]] + [(0, 0)]))
            name, _, side_name = title.partition(": ")
            words = {"predicted": "read off the tokens", "target": "of the whole picture"}
            titles.append(f"{TARGETS.get(name, name)}, {words[side_name]}")
        if not strip:
            return {"titles": [], "side": side, "strip": b""}
        return {"titles": titles, "side": side, "strip": as_png(np.concatenate(strip, 1))}

    def twin(self) -> Any:
        """The present state as a matplotlib figure."""
        sheet, psnr = self.reconstruct(self.mask[None])
        results = {}
        for name, pixels, row in zip(self.tokenizers, np.split(sheet, 2), psnr):
            results[name] = (pixels, row[0])
        curves = dict(zip(self.tokenizers, self.study["psnr"]))
        return plot_mask_pair(
            self.image,
            self.mask,
            results,
            hidden=self.study["hidden"],
            curves=curves,
            trained_ratios=self.trained_ratios,
        )

    # View -----------------------------------------------------------------------------------------

    @functools.cached_property
    def view(self) -> Any:
        """The widget."""
        config = self.tokenizers["masked"].config
        low, high = self.trained_ratios
        about = TITLES | {
            "grid": list(config.grid),
            "image_size": config.image_size,
            "ratios": self.num_ratios,
            "band": [low, high],
            "kinds": list(HIDE_ORDERS),
            "tokens": config.num_latent_tokens,
            "token_grid": list(token_grid(config.num_latent_tokens, wide=True)),
            "tokens_title": f"The masked one's {config.num_latent_tokens} tokens, each where it"
            " draws: point at one, or at a picture",
            "upload_limit": UPLOAD_LIMIT,
            "tiles": {
                "original": ["original", "not in the training set"],
                "seen": ["what both see", "drag here to hide patches by hand"],
                "masked": [PAIR["masked"], f"trained with {100 * low:.0f}–{high:.0%} hidden"],
                "plain": [PAIR["plain"], "as many images seen, nothing hidden", PLAIN],
            },
        }
        # all pictures in a row, which the page cuts up
        strip = torch.cat(list(to_uint8(self.pictures).movedim(1, -1)), dim=1).cpu().numpy()
        view = panel(
            ["chart.js", "mask_demo.js"],
            {
                "about": about,
                "thumbnails": as_png(strip),
                "names": self.names,
                "choice": {"picture": self.index, "kind": self.kind},
                "step": self.step,
                "brushed": self.brushed,
                "study": self.study,
                "answer": {},
                "question": {"open": False},
                "deeper": {"titles": [], "side": 1, "strip": b""},
                "upload": {"serial": 0},
                "message": "",
            },
            pages_own=PAGES_OWN,
        )
        view.observe(self._on_choice, "choice")
        view.observe(self._on_step, "step")
        view.observe(self._on_brush, "brushed")
        view.observe(self._on_question, "question")
        view.observe(self._on_upload, "upload")
        return view

    def _on_choice(self, change: Any) -> None:
        self.kind = change["new"]["kind"]
        self.index = change["new"]["picture"]
        if self.index != OWN:
            self.view.message = ""  # what was said of an uploaded picture
            self.image = self.pictures[self.index]
        self.take(self.image)
        self.view.study = self.study
        self.moved()

    def _on_step(self, change: Any) -> None:
        self.step = change["new"]
        self.moved()

    def _on_brush(self, change: Any) -> None:
        self.brushed = change["new"]
        if self.brushed:
            self.view.answer = self.answer()
        self.moved()

    def _on_question(self, change: Any) -> None:
        question = change["new"]
        if question["open"]:
            self.step = question["step"]
            self.brushed = question["brushed"]
            self.view.deeper = self.deeper()

    def _on_upload(self, change: Any) -> None:
        upload = change["new"]
        try:
            image = read_upload(
                bytes(upload["content"]),
                name=upload["name"],
                length=upload["length"],
                limit=UPLOAD_LIMIT,
                image_size=self.image.shape[-1],
            )
        except ValueError as problem:
            self.view.message = f"Not taken: {problem}"
            return
        self.view.message = f"{upload['name']}: its middle square"
        self.image = image.to(self.device)
        self.view.choice = {"picture": OWN, "kind": self.kind}
