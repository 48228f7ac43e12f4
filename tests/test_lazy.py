"""The front door: names that exist, and cost nothing before they are used."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import maetok_lab as lab
from maetok_lab.lazy import lazy_names

ROOMS = [name for name, module in lab._NAMES.items() if module == f"maetok_lab.{name}"]


@pytest.mark.parametrize("package", ["", *ROOMS])
def test_every_name_is_there(package):
    module = importlib.import_module(f"maetok_lab.{package}".rstrip("."))
    for name in getattr(module, "_NAMES", ()):
        value = getattr(module, name)
        assert value is not None
        # a function in a file of its own name would be hidden by that file
        assert not (isinstance(value, ModuleType) and hasattr(value, name))
        assert name in dir(module)


def test_the_front_door_names_the_thing_itself_and_importing_it_loads_torch_alone():
    from maetok_lab.data.images import open_images

    assert lab.open_images is open_images
    script = "import sys, maetok_lab; print(*{name.partition('.')[0] for name in sys.modules})"
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    heavy = {"pandas", "timm", "torchvision", "accelerate", "sklearn", "matplotlib", "safetensors"}
    assert not heavy & set(done.stdout.split())


def test_a_name_that_is_nearly_right_is_hinted_at():
    with pytest.raises(AttributeError, match=r"no attribute 'open_image'; did you mean 'open_i"):
        lab.open_image  # noqa: B018
    modules, get, names = lazy_names("maetok_lab", {"files": "sha256"})
    assert (modules, names()) == ({"sha256": "maetok_lab.files"}, ["sha256"])
    with pytest.raises(AttributeError, match=r"has no attribute '__path__'$"):
        get("__path__")


def test_the_map_in_its_docstring_leaves_no_name_out():
    assert not [name for name in lab._NAMES if name not in lab.__doc__]
