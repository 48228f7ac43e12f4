"""The order of the library: who may import whom, what is imported late, no hidden state."""

import ast
import re
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parent.parent / "maetok_lab"
ROWS = [  # a row imports rows above it only. The first row's files: left to right
    [
        *(
            "_torchvision",
            "hints",
            "lazy",
            "protocols",
            "identity",
            "config",
            "files",
            "rng",
            "device",
            "cores",
            "pictures",
            "nets",
        ),
        *("processes", "ranks", "inference", "neighbours", "walking", "progress"),
    ],
    ["runs"],
    ["data", "layers"],
    ["tokenizer", "diffusion"],
    ["generation"],
    ["evaluation"],
    ["training"],
    ["analysis"],
    ["plots"],
    ["widgets"],
    ["experiments"],
    ["workflow"],
    ["__main__"],
]
FILES = {  # inside a package a file imports files to its left only
    "runs": [
        *("locks", "events", "provenance", "names", "ending", "weights", "building", "checkpoints"),
        *("origin", "run", "tables", "prune"),
    ],
    "data": [
        *("readers", "splits", "digests", "listing", "folders", "columns", "parquet", "tars"),
        *("sources", "batches", "images", "loading"),
        *("shards", "latents", "caching"),
    ],
    "layers": ["norm", "grid", "transformer", "conditioning"],
    "tokenizer": [
        *("config", "masking", "targets", "text", "towers", "bottlenecks", "perturbation", "model"),
        *("auxiliary", "alignment", "discriminators"),
        *("losses", "perceptual", "anatomy", "released", "loading", "registry", "imported"),
        "foreign",
    ],
    "diffusion": [
        "path",
        "model",
        "graphs",
        "sampling",
        "cost",
        "released",
        "lightningdit",
        "loading",
    ],
    "generation": ["images", "trajectories", "regeneration"],
    "evaluation": [
        *("pixels", "metrics", "features", "protocol", "npz", "scaling", "inception"),
        *("reconstruction", "generation", "classes", "sample_sets"),
    ],
    "training": [
        *(
            "order",
            "optim",
            "stopping",
            "task",
            "memory",
            "loop",
            "adversary",
            "recipe",
            "objective",
            "parents",
            "autoencoding",
            "tokenizer",
            "diffusion",
            "rungs",
        ),
        "presets",
        "meanings",
    ],
    "analysis": [
        *("sentences", "definitions", "preprocess", "mixture", "fitting", "gmm", "modes"),
        *("projection", "labelled"),
        *("probe", "purity", "geometry", "spectra", "grids", "decoding", "interpolation"),
        *("ambiguity", "denoisers", "guidance", "start_times", "entries", "card", "prediction"),
        *("theory", "masks", "maps"),
    ],
    "widgets": [
        *("panel", "front", "charts", "uploads", "live", "ratio_chart", "mask_controls"),
        *("mask_studio", "mask_demo", "latent_map", "run_browser", "sampler_studio"),
    ],
    "experiments": [
        *(
            "ready",
            "generator",
            "ladder",
            "cards",
            "comparison",
            "convergence",
            "study",
            "sentences",
            "settings",
            "published",
            "trial",
            "planner",
            "time_left",
        )
    ],
    "workflow": [
        *("parameters", "code", "inputs", "summary", "page", "execute", "printing", "run", "spec"),
        *("pool", "worker", "board", "gallery", "cluster", "sweep", "collective", "doctor"),
        "serve",
    ],
}
LATE = {
    *("umap", "ipywidgets", "anywidget", "traitlets", "matplotlib", "IPython"),
    *("papermill", "nbconvert", "nbformat", "tensorboard"),
    *("torch_fidelity", "diffusers", "lpips", "submitit", "torchdiffeq", "skimage", "open_clip"),
}
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
MODULES = sorted(LIBRARY.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}

each_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: path.relative_to(LIBRARY).as_posix()
)


def imports(nodes):
    """The dotted names that imports bring in; `from package import file` is package.file."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                inside = LIBRARY.parent.joinpath(*node.module.split("."), alias.name)
                whole = inside.with_suffix(".py").exists() or (inside / "__init__.py").exists()
                yield f"{node.module}.{alias.name}" if whole else node.module


def at_import_time(node):
    """Every node below `node` that runs on import: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import_time(child)


def may_import(here, there):
    """Whether file `here` may import file `there`, both as parts of their dotted names."""
    if here == ("__init__",):
        return there in (("_torchvision",), ("lazy",))
    if here[0] != there[0]:
        first = ROWS[0]
        if here[0] in first and there[0] in first:
            return first.index(there[0]) < first.index(here[0])
        return RANK[there[0]] < RANK[here[0]]
    if len(there) == 1:  # the package itself, from one of its files
        return False
    order = [
        *FILES.get(here[0], sorted(path.stem for path in (LIBRARY / here[0]).glob("*.py"))),
        "__init__",
    ]
    unlisted = {here[1], there[1]} - set(order)
    assert not unlisted, f"{unlisted} of {here[0]} is in no order yet: add it to FILES"
    return order.index(there[1]) < order.index(here[1]) or here[0] not in FILES


@each_module
def test_a_file_imports_only_what_is_above_it(path):
    here = path.relative_to(LIBRARY).with_suffix("").parts
    assert here == ("__init__",) or here[0] in RANK, f"{here[0]} has no rank yet: add it to ROWS"
    for name in imports(ast.walk(TREES[path])):
        if name.startswith("maetok_lab."):
            assert may_import(here, tuple(name.split(".")[1:])), (
                f"{'.'.join(here)} must not import {name}"
            )


def test_workflow_knows_no_science():
    """Notebooks are functions of parameters: it imports root files, `runs` and itself alone.

    One exception: gallery.py draws a sweep's table with the figures that notebook 07 draws it with.
    """
    allowed = {*ROWS[0], "runs", "workflow"}
    for path in (LIBRARY / "workflow").glob("*.py"):
        names = {name for name in imports(ast.walk(TREES[path])) if name.startswith("maetok_lab.")}
        if path.name == "gallery.py":
            names -= {"maetok_lab.plots.sweep"}
        assert {name.split(".")[1] for name in names} <= allowed, path.name


@each_module
def test_optional_packages_are_imported_where_they_are_used(path):
    heavy = {
        name for name in imports(at_import_time(TREES[path])) if name.partition(".")[0] in LATE
    }
    assert not heavy


@each_module
def test_no_hidden_state(path):
    attributes = {
        ast.unparse(node) for node in ast.walk(TREES[path]) if isinstance(node, ast.Attribute)
    }
    banned = r"(np|numpy)\.random\..*|random\.(seed|random|shuffle|choice)"
    banned += r"|os\.(environ|getenv).*|torch\.set_default_.*"
    # where digests are kept changes no result
    banned = banned.replace(r"|os\.(environ|getenv).*", "") if path.name == "digests.py" else banned
    banned += "" if path.name == "rng.py" else r"|torch\.(cuda\.)?manual_seed.*"
    assert not [name for name in attributes if re.fullmatch(banned, name)]


@each_module
def test_public_names_and_modules_say_what_they_are(path):
    tree = TREES[path]
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
    ]
    assert not [node.name for node in public if not ast.get_docstring(node)]
    assert ast.get_docstring(tree) or not tree.body
