"""Build data/pretrained: two tokenizers and the diffusion model that come with the project.

    python data/build_pretrained.py [--runs FOLDER] [--plain]

The main job's trainings (preset `tiny`, seed 0), with larger models, the semantic target beside HOG
and more steps, and a plain autoencoder of the same size that saw as many images (`--plain`: this
one alone): two hours on one core, less what is in the runs folder already. The models are rounded
to fp16, and scored as they are shipped: index.json has the scores with their protocol, the sha256
of every file, and what the trainings record about themselves.
"""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from maetok_lab.data.caching import cached_latents
from maetok_lab.data.images import ImageSource, open_images, open_splits
from maetok_lab.data.latents import LatentDataset, load_latent_space
from maetok_lab.device import pick_device, pick_precision
from maetok_lab.diffusion.loading import export_diffusion, load_diffusion
from maetok_lab.diffusion.sampling import Guidance
from maetok_lab.evaluation.features import make_reference
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.protocol import EvalProtocol
from maetok_lab.evaluation.reconstruction import evaluate_reconstruction
from maetok_lab.experiments.ready import train_both_stages, train_plain
from maetok_lab.files import read_json, write_json
from maetok_lab.generation.images import generate
from maetok_lab.nets import load_net
from maetok_lab.runs import Run, runs_root
from maetok_lab.runs.weights import SHIPPED
from maetok_lab.tokenizer.loading import export_tokenizer, load_auxiliary, load_tokenizer
from maetok_lab.training.diffusion import train_diffusion
from maetok_lab.training.presets import DECODER_TUNING, diffusion_training, ladder_training
from maetok_lab.widgets.live import follow_to_end

LABELS = "category-style"
RUNG = "all"
# the main job has 950, 220 and 950
STEPS = {"tokenizer": 5000, "decoder": 1000, "diffusion": 6000}
# the main job's towers have width 96 and two blocks, its diffusion model width 128 and four; the
# latents keep their shape
TOWER = {"width": 128, "depth": 4, "num_heads": 4}
DIFFUSION_SIZE = {"width": 160, "depth": 6, "num_heads": 5}
TUNING = DECODER_TUNING["tiny"] | {"num_steps": STEPS["decoder"]}
ABOUT = (
    "Preset `tiny` of maetok_lab, with larger towers and more steps, on its "
    "shipped emoji artwork (64 px), made by data/build_pretrained.py."
)
SAMPLING = {"num_steps": 20, "guidance": Guidance(3.0, 0.0, 0.75)}


def main() -> None:
    """Train, export, score what was exported."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", help="folder of its runs; runs/ beside the library by default")
    parser.add_argument("--plain", action="store_true", help="the plain autoencoder alone")
    options = parser.parse_args()
    root = runs_root(options.runs)
    images = open_splits("emoji", image_size=64, labels=LABELS)
    about = {"scores": {}, "runs": {}}
    if options.plain:
        about = read_json(SHIPPED / "index.json")
    else:
        make_models(images, root, about)
    make_plain(images, root, about)
    about["sha256"] = {}
    for path in sorted(SHIPPED.rglob("*.safetensors")):
        name = str(path.relative_to(SHIPPED))
        about["sha256"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    about["command"] = "python data/build_pretrained.py"
    write_json(SHIPPED / "index.json", about)


def make_models(images: dict[str, ImageSource], root: Path, about: dict[str, dict]) -> None:
    """The masked tokenizer and the diffusion model; their scores and runs go into `about`."""
    stages = train(train_both_stages, "pretrained-tokenizer", images, root)
    _, tuned = stages
    tokenizer = load_tokenizer(tuned.folder)
    latents = {}
    for split in ("train", "test"):
        latents[split] = cached_latents(
            tokenizer.to(pick_device()),
            images[split],
            f"pretrained-latents-{split}",
            flips=split == "train",
            root=root,
            parents=[tuned],
            device=pick_device(),
        )
    diffusion = train_generator(latents, images["train"].num_classes, root)
    export(tuned, latents["train"].run, diffusion)
    about["scores"] |= {
        "reconstruction": reconstruction("shipped/tokenizer"),
        "generation": generation(images["train"], tuned.config["seed"]),
    }
    for run in (*stages, latents["train"].run, diffusion):
        about["runs"][run.name] = {"config": run.config, "provenance": run.provenance}


def make_plain(images: dict[str, ImageSource], root: Path, about: dict[str, dict]) -> None:
    """The plain autoencoder; its score and run go into `about`."""
    run = train(train_plain, "pretrained-plain", images, root)
    tokenizer = load_tokenizer(run.folder)
    export_tokenizer(tokenizer, SHIPPED / "plain", about=ABOUT, dtype=torch.float16)
    about["scores"]["plain reconstruction"] = reconstruction("shipped/plain")
    about["runs"][run.name] = {"config": run.config, "provenance": run.provenance}


def train(training: Callable, name: str, images: dict[str, ImageSource], root: Path) -> Any:
    """`train_both_stages` or `train_plain` with the masked tokenizer's config, on this machine."""
    device = pick_device()
    changes = {
        "images": images["train"].fingerprint,
        "precision": pick_precision(device),
        "num_steps": STEPS["tokenizer"],
    }
    for tower in ("encoder", "decoder"):
        changes |= {f"model.{tower}.{field}": size for field, size in TOWER.items()}
    config = ladder_training("tiny", RUNG, **changes)
    parts = (images["train"], images["val"])
    return training(name, config, TUNING, *parts, root=root, device=device)


def train_generator(latents: dict[str, LatentDataset], num_classes: int, root: Path) -> Run:
    """The diffusion model on those latents."""
    device = pick_device()
    changes = {"precision": pick_precision(device), "num_steps": STEPS["diffusion"]}
    changes |= {f"model.{field}": size for field, size in DIFFUSION_SIZE.items()}
    config = diffusion_training("tiny", latents["train"], num_classes=num_classes, **changes)
    run = Run.open("pretrained-diffusion", config, root=root, parents=[latents["train"].run])
    training = train_diffusion(
        config, latents["train"], run, validation=latents["test"], cpu=device.type == "cpu"
    )
    follow_to_end(training, "diffusion")
    return run


def export(tuned: Run, cache: Run, diffusion: Run) -> None:
    """Both models as fp16 folders."""
    tokenizer = load_tokenizer(tuned.folder)
    half = torch.float16
    auxiliary = load_auxiliary(tuned.folder)
    export_tokenizer(tokenizer, SHIPPED / "tokenizer", about=ABOUT, auxiliary=auxiliary, dtype=half)
    space = load_latent_space(cache.folder)
    model = load_diffusion(diffusion.folder)
    export_diffusion(
        model, SHIPPED / "diffusion", space=space, tokenizer=tokenizer, about=ABOUT, dtype=half
    )


def reconstruction(name: str) -> dict[str, object]:
    """What a shipped tokenizer gives on test images, with its protocol."""
    device = pick_device()
    tokenizer = load_tokenizer(name).to(device)
    size = tokenizer.config.image_size
    test = open_images("emoji", split="test", image_size=size, labels=LABELS)
    protocol = EvalProtocol(task="reconstruction")
    return evaluate_reconstruction(tokenizer, test, protocol=protocol, device=device).to_json()


def generation(train: ImageSource, seed: int) -> dict[str, object]:
    """KID of guided samples, of the test images' classes, to the test images."""
    device = pick_device()
    tokenizer = load_tokenizer("shipped/tokenizer").to(device)
    space = load_latent_space("shipped/diffusion").to(device)
    size = tokenizer.config.image_size
    test = open_images("emoji", split="test", image_size=size, labels=LABELS)
    net = load_net("efficientnet_lite2", input_size=128).to(device)
    model = load_diffusion("shipped/diffusion").to(device)
    samples = generate(model, tokenizer, space, test.labels, seed=seed + 1, **SAMPLING)
    spread = torch.linspace(0, len(train) - 1, len(test)).long()
    pictures = {
        "samples": samples,
        "test": test.batch(torch.arange(len(test)))[0],
        "train": train.batch(spread)[0],
    }
    sets = {name: make_reference(images, net, name=name) for name, images in pictures.items()}
    guidance = SAMPLING["guidance"]
    protocol = EvalProtocol(
        sampler="euler",
        steps=SAMPLING["num_steps"],
        path=model.trained_path,
        time_shift=model.trained_shift,
        guidance_scale=guidance.scale,
        guidance_low=guidance.low,
        guidance_high=guidance.high,
        seed=seed + 1,
    )
    result = evaluate_generation(
        sets["samples"],
        sets["test"],
        second_reference=sets["train"],
        net=net,
        protocol=protocol,
        metrics=["kid"],
    )
    return result.to_json()


if __name__ == "__main__":
    main()
