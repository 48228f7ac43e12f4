"""Pages of our own script: their first state is given when they are made, a still needs no kernel.

`panel(["mask_demo.js"], {...})` is a widget; `still(...)` is what stays of it in a stored notebook.
"""

import base64
import functools
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def panel(
    scripts: Sequence[str], state: Mapping[str, Any], *, pages_own: Collection[str] = ()
) -> Any:
    """A widget whose traits are `state`: numbers, texts, PNG bytes, or dicts and lists of them.

    The last of `scripts` draws it. `pages_own` are the traits that the page sets: they are never
    sent twice, which would undo what a person did meanwhile. Raises ImportError that names the
    extra.
    """
    return _panel_class()(scripts, state, frozenset(pages_own))


@functools.cache
def _panel_class() -> type:
    try:
        import anywidget
        import traitlets
    except ImportError as problem:
        raise ImportError(
            "widgets need anywidget: pip install 'maetok-lab[notebooks]'"
        ) from problem

    class Panel(anywidget.AnyWidget):
        def __init__(self, scripts: Sequence[str], state: Mapping[str, Any], pages_own: Any):
            self.scripts = scripts
            self.state_names = tuple(state)
            self._again = [name for name in state if name not in pages_own]
            # panel.js finds its model by this name
            identity = uuid.uuid4().hex
            traits = {
                "_esm": traitlets.Unicode(source(scripts)),
                "_css": traitlets.Unicode(_text("panel.css")),
                "identity": traitlets.Unicode(identity),
            }
            for name, value in state.items():
                traits[name] = traitlets.Any(value)
            self.add_traits(**{name: trait.tag(sync=True) for name, trait in traits.items()})
            super().__init__(model_id=identity)
            self.on_msg(self._on_message)

        def _on_message(self, _: Any, content: dict[str, Any], __: Any) -> None:
            # a page that started late asks for what it missed; see panel.js
            if content.get("kind") == "state":
                self.send_state(self._again)

    return Panel


def source(scripts: Sequence[str]) -> str:
    """The whole script of a page, as one module."""
    return "\n".join(_text(name) for name in ("panel.js", *scripts))


def _text(name: str) -> str:
    """A script or style sheet beside this file."""
    return (HERE / name).read_text(encoding="utf-8")


def picture_still(twin: bytes, name: str = "") -> str:
    """HTML of a PNG that hides itself beside the living view of the same cell."""
    picture = base64.b64encode(twin).decode()
    place = f" id='{name}'" if name else ""
    return (
        f"<style>{_text('still.css')}</style><div class='maetok-still'{place}>"
        f"<img alt='' src='data:image/png;base64,{picture}'></div>"
    )


def still(view: Any, twin: bytes) -> str:
    """`picture_still` that its script replaces by the panel's state: no kernel is needed."""
    state = {name: getattr(view, name) for name in view.state_names}
    # no name of a class or file can end the script that it is in
    text = json.dumps(state, default=_as_base64).replace("<", "\\u003c")
    name = f"maetok-{view.identity}"
    return (
        f"<style>{_text('panel.css')}</style>{picture_still(twin, name)}"
        f"<script type='application/json' id='{name}-state'>{text}</script>"
        f"<script type='module'>{source(view.scripts)}\n"
        f"showStill('{name}', document.getElementById('{name}-state').textContent, page.render);"
        "</script>"
    )


def _as_base64(value: Any) -> dict[str, str]:
    return {"base64": base64.b64encode(bytes(value)).decode()}
