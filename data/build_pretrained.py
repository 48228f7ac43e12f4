"""Build data/pretrained: the tokenizer and the diffusion model that come with the project.

    python data/build_pretrained.py [--runs FOLDER]

The main job's trainings (preset `tiny`, seed 0), with the semantic target beside HOG and more
steps: half an hour on one core, less what is in the runs folder already. The models are
rounded to fp16, and scored as they are shipped: index.json has the scores with their protocol,
the sha256 of every file, and what the trainings record about themselves.
"""

import argparse
import hashlib
from pathlib import Path

import torch

from maetok_lab.data.caching import cached_latents
from maetok_lab.data.images import ImageSource, open_splits
from maetok_lab.data.latents import LatentDataset, LatentSpace, load_latent_space
from maetok_lab.device import pick_device, pick_precision
from maetok_lab.diffusion.loading import export_diffusion, load_diffusion
from maetok_lab.diffusion.sampling import Guidance
from maetok_lab.evaluation.features import make_reference
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.protocol import EvalProtocol
from maetok_lab.evaluation.reconstruction import evaluate_reconstruction
from maetok_lab.experiments.ready import train_both_stages
from maetok_lab.files import write_json
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
STEPS = {"tokenizer": 2400, "decoder": 600, "diffusion": 3000}
SAMPLING = {"num_steps": 20, "guidance": Guidance(3.0, 0.0, 0.75)}


def main() -> None:
    """Train, export, score what was exported."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", help="folder of its runs; runs/ beside the library by default")
    root = runs_root(parser.parse_args().runs)
    images = open_splits("emoji", image_size=64, labels=LABELS)
    masked, tuned = train_tokenizer(images, root)
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
    scores = score(tuned.config["seed"])
    runs = (masked, tuned, latents["train"].run, diffusion)
    files = {
        str(path.relative_to(SHIPPED)): path for path in sorted(SHIPPED.rglob("*.safetensors"))
    }
    write_json(
        SHIPPED / "index.json",
        {
            "sha256": {
                name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
            },
            "command": "python data/build_pretrained.py",
            "scores": scores,
            "runs": {
                run.name: {"config": run.config, "provenance": run.provenance} for run in runs
            },
        },
    )


def train_tokenizer(images: dict[str, ImageSource], root: Path) -> tuple[Run, Run]:
    """The masked tokenizer and, from it, the one with a tuned decoder."""
    device = pick_device()
    changes = {
        "images": images["train"].fingerprint,
        "precision": pick_precision(device),
        "num_steps": STEPS["tokenizer"],
    }
    config = ladder_training("tiny", RUNG, **changes)
    tuning = DECODER_TUNING["tiny"] | {"num_steps": STEPS["decoder"]}
    return train_both_stages(
        "pretrained-tokenizer",
        config,
        tuning,
        images["train"],
        images["val"],
        root=root,
        device=device,
    )


def train_generator(latents: dict[str, LatentDataset], num_classes: int, root: Path) -> Run:
    """The diffusion model on those latents."""
    device = pick_device()
    changes = {"precision": pick_precision(device), "num_steps": STEPS["diffusion"]}
    config = diffusion_training("tiny", latents["train"], num_classes=num_classes, **changes)
    run = Run.open("pretrained-diffusion", config, root=root, parents=[latents["train"].run])
    training = train_diffusion(
        config, latents["train"], run, validation=latents["test"], cpu=device.type == "cpu"
    )
    follow_to_end(training, "diffusion")
    return run


def export(tuned: Run, cache: Run, diffusion: Run) -> None:
    """Both models as fp16 folders."""
    about = (
        "Preset `tiny` of maetok_lab on its shipped emoji artwork (64 px), "
        "made by data/build_pretrained.py."
    )
    tokenizer = load_tokenizer(tuned.folder)
    half = torch.float16
    auxiliary = load_auxiliary(tuned.folder)
    export_tokenizer(tokenizer, SHIPPED / "tokenizer", about=about, auxiliary=auxiliary, dtype=half)
    space = load_latent_space(cache.folder)
    model = load_diffusion(diffusion.folder)
    export_diffusion(
        model, SHIPPED / "diffusion", space=space, tokenizer=tokenizer, about=about, dtype=half
    )


def score(seed: int) -> dict[str, object]:
    """What the shipped files give on test images, each with its protocol."""
    device = pick_device()
    tokenizer = load_tokenizer("shipped/tokenizer").to(device)
    space = load_latent_space("shipped/diffusion")
    size = tokenizer.config.image_size
    images = open_splits("emoji", image_size=size, labels=LABELS, splits=("train", "test"))
    test = images["test"]
    train = images["train"]
    rebuilt = evaluate_reconstruction(
        tokenizer, test, protocol=EvalProtocol(task="reconstruction"), device=device
    )
    return {
        "reconstruction": rebuilt.to_json(),
        "generation": generation(tokenizer, space, test, train, seed).to_json(),
    }


def generation(tokenizer, space: LatentSpace, test, train, seed: int):
    """KID of guided samples, of the test images' classes, to the test images."""
    device = pick_device()
    net = load_net("efficientnet_lite2", input_size=128).to(device)
    model = load_diffusion("shipped/diffusion").to(device)
    samples = generate(model, tokenizer, space.to(device), test.labels, seed=seed + 1, **SAMPLING)
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
        guidance_scale=guidance.scale,
        guidance_low=guidance.low,
        guidance_high=guidance.high,
        seed=seed + 1,
    )
    return evaluate_generation(
        sets["samples"],
        sets["test"],
        second_reference=sets["train"],
        net=net,
        protocol=protocol,
        metrics=["kid"],
    )


if __name__ == "__main__":
    main()
