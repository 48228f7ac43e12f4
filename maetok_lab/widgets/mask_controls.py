"""The controls of the mask studio."""

import functools
from types import SimpleNamespace
from typing import Any

from maetok_lab.tokenizer import anatomy
from maetok_lab.widgets.front import cell_grid, ipywidgets, token_grid, upload_control

LARGE = 256  # side of a picture, px
WIDTH = 1120  # of the view: four pictures side by side
OWN = -1  # the choice "my own picture"
HELD_OUT = 64  # images for the curve and the statistics of tokens
KINDS = (  # what is hidden, in words, and as `draw_masks` takes it
    ("any patches", "random"),
    ("a block", "block"),
    ("patches of one colour", "flat"),
    ("soft patches", "soft"),
    ("patches with edges", "busy"),
)


def mask_controls(studio: Any) -> SimpleNamespace:
    """Every control of a `MaskStudio` by name, at its present state."""
    package = ipywidgets()
    style = {"description_width": "90px"}
    column, narrow, wide = ({"width": width} for width in ("270px", "180px", "100%"))
    dropdown = functools.partial(package.Dropdown, layout=column, style=style)
    images = list(zip(studio.names, range(len(studio.names))))
    return SimpleNamespace(
        # the mask
        image=dropdown(
            options=[*images, ("my own picture", OWN)], value=studio.index, description="image"
        ),
        upload=upload_control("my own picture"),
        kind=dropdown(options=KINDS, value=studio.kind, description="hide patches"),
        ratio=package.FloatSlider(
            value=studio.ratio,
            min=0,
            max=1,
            step=0.05,
            description="mask ratio",
            layout=wide | {"max_width": f"{WIDTH}px"},
            style=style,
        ),
        seed=package.BoundedIntText(
            value=studio.seed, max=9999, description="mask seed", layout=narrow, style=style
        ),
        touch=package.ToggleButtons(
            options=[("hide", "brush"), ("ask", "pick")],
            description="a click will",
            style={"description_width": "80px", "button_width": "60px"},
        ),
        patches=cell_grid(
            *studio.grid,
            studio.seen_png(),
            hidden=studio.mask.nonzero()[:, 0].tolist(),
            size=LARGE,
            label="image patches: brush to hide, or pick one to ask about",
        ),
        # the tokens, and what is done to them
        tokens=cell_grid(
            *token_grid(len(studio.whole), wide=True),
            studio.tokens_png(studio.study.moved),
            size=LARGE,
            mode="pick",
            label="latent tokens: pick those to ask about or to change",
        ),
        surgery=dropdown(options=anatomy.SURGERIES, description="surgery"),
        amount=package.FloatSlider(
            value=0.5, max=2, step=0.05, description="amount", layout=column, style=style
        ),
        other=dropdown(options=images, value=studio.other, description="other image"),
    )
