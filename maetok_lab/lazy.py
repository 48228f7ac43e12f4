"""Names of a package that are imported when they are first used (PEP 562).

    _NAMES, __getattr__, __dir__ = lazy_names(__name__, {"images": "plot_images plot_rows"})

So `import maetok_lab as lab` costs nothing, and a notebook that draws one figure loads one file.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from maetok_lab.hints import did_you_mean

Lazy = tuple[dict[str, str], Callable[[str], Any], Callable[[], list[str]]]


def lazy_names(package: str, names: Mapping[str, str]) -> Lazy:
    """The table {name: module}, and the module's `__getattr__` and `__dir__`.

    `names` are words by the file below `package` that defines them; those under "" are files or
    packages themselves. An unknown name is an AttributeError with the nearest one.
    """
    modules = {}
    for file, words in names.items():
        for name in words.split():
            modules[name] = f"{package}.{file}" if file else f"{package}.{name}"

    def get(name: str) -> Any:
        """The package's `__getattr__`."""
        if name not in modules:
            # Names with underscores are asked for by Python itself; a hint would be noise.
            hint = "" if name.startswith("_") else did_you_mean(name, modules)
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")
        module = importlib.import_module(modules[name])
        return module if modules[name].endswith(f".{name}") else getattr(module, name)

    return modules, get, lambda: sorted(modules)
