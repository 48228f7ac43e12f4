"""Weights and configs that somebody damaged, or made to harm: none may do anything but be refused.

    python tests/attack/weights.py COUNT SEED

Small valid folders and files are mutated and loaded in a child process of limited memory. One has
survived when it loads with shapes that make sense, or is refused in words that name it.
"""

import importlib
import io
import json
import math
import os
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

from child import Child

SECONDS = 20.0  # for one to be loaded
BYTES = 3 << 30  # of address space, beyond what the libraries take
DAMAGES = 4  # of one kind in one file, at most
NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, math.inf, math.nan]
WORDS = ["", "x", "../../etc/passwd", "\x1b[31m", "\ud800", "é" * 300, "TokenizerConfig", "meta"]
BIG_NUMBER = "9" * 5000  # more digits than Python reads


# The child: it loads ------------------------------------------------------------------------------


def load(kind, path):
    """Load one, and look at what came -> None, or what is wrong with it."""
    from maetok_lab.data.latents import load_latent_space
    from maetok_lab.diffusion.loading import load_diffusion
    from maetok_lab.tokenizer.loading import load_tokenizer

    loaders = {"tokenizer": load_tokenizer, "diffusion": load_diffusion, "space": load_latent_space}
    try:
        loaded = loaders[kind](path)
    except (ValueError, TypeError, FileNotFoundError) as problem:
        text = str(problem)
        return None if os.path.basename(path) in text else f"unnamed: {problem!r}"
    except BaseException as problem:
        return f"{type(problem).__name__}: {problem}"

    # what loaded must be of a size that its file can have
    if kind == "space":
        sound = loaded.mean.isfinite().all() and (loaded.std > 0).all() and loaded.mean.ndim <= 2
        return None if sound else f"a latent space of {loaded.mean} and {loaded.std}"
    count = sum(parameter.numel() for parameter in loaded.parameters())
    sizes = loaded.latent_shape if kind == "tokenizer" else (loaded.num_tokens, loaded.latent_dim)
    sound = 0 < count < 10**7 and all(0 < size < 10**5 for size in sizes)
    return None if sound else f"{count} parameters, latents {sizes}"


def child():
    """Answer lines "KIND PATH" with what `load` says, as JSON."""
    import torch

    # before memory is limited
    for room in ("data.latents", "diffusion.loading", "tokenizer.loading"):
        importlib.import_module(f"maetok_lab.{room}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # what is mapped already counts too
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, mapped + BYTES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        kind, path = json.loads(line)
        print(json.dumps(load(kind, path)), file=answers, flush=True)


class Loader(Child):
    """A process that loads."""

    script = __file__
    seconds = SECONDS


# Valid ones ---------------------------------------------------------------------------------------


def write_valid(folder):
    """Sound weights of every form, small -> (kind of loader, folder or file) of each."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from maetok_lab.data.latents import LatentSpace
    from maetok_lab.diffusion.loading import export_diffusion
    from maetok_lab.diffusion.model import DIFFUSION, DiffusionTransformer
    from maetok_lab.tokenizer.loading import export_tokenizer
    from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer

    # ours, as they are exported
    tokenizer = Tokenizer(TOKENIZERS["test"]).eval()
    tokens, channels = tokenizer.latent_shape
    model = DiffusionTransformer(
        DIFFUSION["test"], num_tokens=tokens, latent_dim=channels, num_classes=3
    )
    space = LatentSpace(tokenizer.fingerprint, torch.zeros(channels), torch.ones(channels))
    export_tokenizer(tokenizer, folder / "tokenizer")
    export_diffusion(model, folder / "diffusion", space=space, tokenizer=tokenizer)

    # the authors', from the fixtures: the weights among their tensors have names with dots
    fixtures = Path(__file__).parents[1] / "fixtures"
    for name, kind in [
        ("tokenizer-small", "tokenizer"),
        ("sit-small", "diffusion"),
        ("lightningdit-small", "lightningdit"),
    ]:
        file = fixtures / f"{name}.safetensors"
        with safe_open(file, "pt") as opened:
            settings = json.loads(opened.metadata()["config"])
        weights = {}
        for key, value in load_file(file).items():
            if key.startswith("weights."):
                weights[key.removeprefix("weights.")] = value
        target = folder / f"released-{kind}"
        target.mkdir()
        save_file(weights, target / "model.safetensors")
        (target / "config.json").write_text(json.dumps(settings))
        checkpoint = {"model": weights, "args": settings, "step": 3}
        torch.save(checkpoint, folder / f"{kind}.pt")
    return [
        ("tokenizer", folder / "tokenizer"),
        ("diffusion", folder / "diffusion"),
        ("space", folder / "diffusion"),
        ("tokenizer", folder / "released-tokenizer"),
        ("diffusion", folder / "released-diffusion"),
        ("space", folder / "released-tokenizer"),
        ("tokenizer", folder / "tokenizer.pt"),
        ("diffusion", folder / "diffusion.pt"),
        ("diffusion", folder / "released-lightningdit"),
        ("diffusion", folder / "lightningdit.pt"),
    ]


# Mutations ----------------------------------------------------------------------------------------


def flipped(data, dice):
    """Some bits flipped, most often where a header is."""
    data = bytearray(data)
    for _ in range(dice.randint(1, DAMAGES)):
        end = len(data) if dice.random() < 0.3 else min(len(data), 2000)
        data[dice.randrange(end)] ^= 1 << dice.randrange(8)
    return bytes(data)


def cut(data, dice):
    """Cut off, or a piece of it missing, doubled or blank."""
    first, last = sorted(dice.randrange(len(data)) for _ in range(2))
    middle = dice.choice([b"", data[first:last] * 2, bytes(last - first)])
    return dice.choice([data[:first], data[:first] + middle + data[last:]])


def odd_value(dice, depth=0):
    """A value that a config has no place for."""
    choice = dice.randrange(6)
    if choice == 0:
        return dice.choice(NUMBERS)
    if choice == 1:
        return dice.choice(WORDS)
    if choice == 2:
        return dice.choice([None, True, False, [], {}])
    if choice == 3 and depth < 3:
        return [odd_value(dice, depth + 1) for _ in range(dice.randint(1, 3))]
    if choice == 4 and depth < 3:
        return {dice.choice(WORDS): odd_value(dice, depth + 1)}
    return dice.choice([1000, 10**5, 10**6, 10**9])


def places(data, path=()):
    """The paths of all values in plain JSON."""
    if isinstance(data, dict):
        pairs = list(data.items())
    elif isinstance(data, list):
        pairs = list(enumerate(data[:4]))
    else:
        return [path] if path else []
    paths = [path] if path else []
    for key, value in pairs:
        paths += places(value, (*path, key))
    return paths


def odd_json(data, dice):
    """The text of a config in which some values are odd, gone, or more than there were."""
    data = json.loads(json.dumps(data))
    for _ in range(dice.randint(1, DAMAGES)):
        paths = places(data)
        if not paths:
            break
        *way, last = dice.choice(paths)
        inner = data
        for key in way:
            inner = inner[key]
        choice = dice.randrange(4)
        if choice == 0 and isinstance(inner, dict):
            del inner[last]
        elif choice == 1 and isinstance(inner, dict):
            inner[dice.choice(WORDS)] = inner[last]
        else:
            inner[last] = odd_value(dice)
    text = json.dumps(data)
    choice = dice.randrange(12)
    if choice == 0:  # far too deep
        text = '{"a":' * 10**5 + "1" + "}" * 10**5
    elif choice == 1:
        text = "[" * 10**6
    elif choice == 2:
        text = text.replace("32", BIG_NUMBER, 1)
    elif choice == 3:
        text = json.dumps(odd_value(dice))
    return text.encode("utf-8", "surrogatepass")


def odd_header(data, dice):
    """safetensors whose header says something else: sizes, shapes, kinds, places, names."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    choice = dice.randrange(6)
    names = [name for name in header if name != "__metadata__"]
    for name in dice.sample(names, min(len(names), dice.randint(1, DAMAGES))):
        tensor = header[name]
        if choice == 0:
            tensor["shape"] = [dice.choice([0, 1, 7, 2**40, 2**63, -1]) for _ in tensor["shape"]]
        elif choice == 1:
            kinds = ["F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "C64", "F4", "U16", "X", 3]
            tensor["dtype"] = dice.choice(kinds)
        elif choice == 2:
            tensor["data_offsets"] = [dice.randrange(10**6), dice.choice([0, 4, 10**6, 2**62])]
        elif choice == 3:
            header[name.replace("0", "999999999") + dice.choice(["", "x", "\x1b"])] = tensor
            del header[name]
        elif choice == 4:  # the right number of values in another shape
            tensor["shape"] = [math.prod(tensor["shape"]), *[1] * dice.randrange(3)]
        else:
            del header[name]
    text = json.dumps(header).encode()
    size = dice.choice([len(text)] * 6 + [0, 2**63, 2**32, len(text) - 3, len(text) + 10**6])
    return struct.pack("<Q", size) + text + body


class Runs:
    """A pickle that would execute something."""

    def __init__(self, function, *arguments):
        self.function = function
        self.arguments = arguments

    def __reduce__(self):
        return self.function, self.arguments


def claims(weights, dice):
    """Weights that are more than their file: views that step on the spot, one block many times."""
    import torch

    if dice.random() < 0.5:
        name = dice.choice(list(weights))
        weights[name] = torch.zeros(1).expand(dice.choice([10**6, 10**9]), 1000)
        return
    for number in range(dice.choice([50, 5000])):
        for name in list(weights):
            if ".0." in name and len(weights) < 20_000:
                weights[name.replace(".0.", f".{number}.")] = weights[name]


def odd_tensor(dice):
    """What is no weight."""
    import torch

    return dice.choice(
        [
            torch.zeros(3, 3).to_sparse(),
            torch.zeros(3, device="meta"),
            torch.zeros(3, dtype=torch.complex64),
            torch.tensor([]),
            torch.tensor(1.0),
            {"a": torch.zeros(1)},
            "text",
            None,
            [1, 2],
        ]
    )


def odd_checkpoint(path, dice, marker):
    """Replace a .pt file by one that would run code, claims more than it has, or has no weights."""
    import torch

    state = torch.load(path, weights_only=True)
    weights = state["model"]
    choice = dice.randrange(8)
    if choice == 0:
        state["model"] = Runs(os.system, f"touch {marker}")
    elif choice == 1:
        state["args"] = Runs(exec, f"open({str(marker)!r}, 'w')")
    elif choice in (2, 3):
        claims(weights, dice)
    elif choice == 4:
        weights[dice.choice(list(weights))] = odd_tensor(dice)
    elif choice == 5:
        state = dice.choice([[], "text", 3, torch.zeros(2), {"model": {}}, {"model": 3}, {1: 2}])
    elif choice == 6:
        state["args"] = dice.choice([{"num_heads": nested(150)}, odd_value(dice)])
    else:  # a pickle of the old kind, without torch's own
        path.write_bytes(pickle.dumps(Runs(os.system, f"touch {marker}")))
        return
    torch.save(state, path)


def nested(depth):
    """Lists in each other."""
    return [nested(depth - 1)] if depth else []


def repacked(data, dice):
    """A .pt file, which is a zip: its pickle damaged and packed with right sums, or a part gone."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
        parts = old.namelist()
        gone = dice.choice([*parts, None, None])
        for name in parts:
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = flipped(content, dice)
            if name != gone:
                new.writestr(name, content)
    return packed.getvalue()


def mutate(path, dice, marker):
    """Damage a folder or file of weights in one way -> in which."""
    if path.suffix == ".pt":
        way = dice.choice([flipped, cut, repacked, odd_checkpoint, odd_checkpoint])
        if way is odd_checkpoint:
            odd_checkpoint(path, dice, marker)
        else:
            path.write_bytes(way(path.read_bytes(), dice))
        return way.__name__
    way = dice.choice([flipped, cut, odd_json, odd_json, odd_json, odd_header, odd_header])
    name = dice.choice(["config.json", "model.safetensors"]) if way in (flipped, cut) else ""
    file = path / (name or ("config.json" if way is odd_json else "model.safetensors"))
    data = file.read_bytes()
    file.write_bytes(way(json.loads(data) if way is odd_json else data, dice))
    return way.__name__


def mutated_weights(count, seed):
    """Load `count` mutations -> {"tried", "survived", "failures": what was done, and what came}."""
    failures = []
    with tempfile.TemporaryDirectory() as place, Loader() as child:
        valid = Path(place) / "valid"
        valid.mkdir()
        sources = write_valid(valid)
        # they are sound before anything is done to them
        for kind, path in sources:
            problem = child.ask(kind, path)
            assert problem is None, f"{path.name}: {problem}"
        for number in range(count):
            dice = random.Random(f"{seed} {number}")
            kind, path = dice.choice(sources)
            marker = Path(place) / f"executed-{number}"
            copy = Path(place) / f"odd-{number}{path.suffix}"
            _copy(path, copy)
            way = mutate(copy, dice, marker)
            problem = child.ask(kind, copy)
            if marker.exists():
                problem = "code was executed"
            if problem:
                failures.append(f"{seed} {number}, {path.name} {way} as {kind}: {problem}")
            _remove(copy)
    return {"tried": count, "survived": count - len(failures), "failures": failures}


def _copy(source, target):
    if source.is_file():
        target.write_bytes(source.read_bytes())
        return
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def _remove(path):
    for file in path.iterdir() if path.is_dir() else [path]:
        file.unlink()
    if path.is_dir():
        path.rmdir()


if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        child()
    else:
        started = time.monotonic()
        result = mutated_weights(*map(int, sys.argv[1:]))
        print(*result.pop("failures"), sep="\n")
        print(f"{result} in {time.monotonic() - started:.0f} s")
