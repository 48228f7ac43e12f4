"""Build data/pretrained: the tokenizer and the diffusion model that come with the project, from the runs of the main job.

    make demo && python data/build_pretrained.py [--runs FOLDER]

They are rounded to fp16, and scored as they are shipped: index.json has the scores with their protocol, the sha256 of every
file, and what the trainings record about themselves.
"""

import argparse
import hashlib

import torch

from maetok_lab.data.images import open_images
from maetok_lab.data.latents import LatentSpace, load_latent_space
from maetok_lab.device import pick_device
from maetok_lab.diffusion.loading import export_diffusion, load_diffusion
from maetok_lab.diffusion.sampling import Guidance
from maetok_lab.evaluation.generation import evaluate_generation, make_reference
from maetok_lab.evaluation.protocol import EvalProtocol
from maetok_lab.evaluation.reconstruction import evaluate_reconstruction
from maetok_lab.evaluation.samples import generate
from maetok_lab.files import write_json
from maetok_lab.nets import load_net
from maetok_lab.runs import Run, runs_root
from maetok_lab.tokenizer.loading import export_tokenizer, load_auxiliary, load_tokenizer
from maetok_lab.weights import SHIPPED

LABELS = "category-style"
RUNS = ("tokenizer-tiny-s0-tuned", "latents-tiny-s0-train", "diffusion-tiny-s0")
SAMPLING = {"num_steps": 40, "guidance": Guidance(3.0, 0.0, 0.75)}


def main() -> None:
    """Export, score what was exported."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", help="folder of the main job's runs; runs/ beside the library by default")
    root = runs_root(parser.parse_args().runs)
    tuned, cache, diffusion = (Run(root / name) for name in RUNS)
    export(tuned, cache, diffusion)
    scores = score(tuned.config["seed"])
    files = {str(path.relative_to(SHIPPED)): path for path in sorted(SHIPPED.rglob("*.safetensors"))}
    write_json(SHIPPED / "index.json", {
        "sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
        "command": "make demo && python data/build_pretrained.py",
        "scores": scores,
        "runs": {run.name: {"config": run.config, "provenance": run.provenance} for run in (tuned, cache, diffusion)},
    })  # fmt: skip


def export(tuned: Run, cache: Run, diffusion: Run) -> None:
    """Both models as fp16 folders."""
    about = "Preset `tiny` of maetok_lab on its shipped emoji artwork (32 px), made by data/build_pretrained.py."
    tokenizer, half = load_tokenizer(tuned.folder), torch.float16
    auxiliary = load_auxiliary(tuned.folder)
    export_tokenizer(tokenizer, SHIPPED / "tokenizer", about=about, auxiliary=auxiliary, dtype=half)
    space, model = load_latent_space(cache.folder), load_diffusion(diffusion.folder)
    export_diffusion(model, SHIPPED / "diffusion", space=space, tokenizer=tokenizer, about=about, dtype=half)


def score(seed: int) -> dict[str, object]:
    """What the shipped files give on test images, each with its protocol."""
    device = pick_device()
    tokenizer, space = load_tokenizer("shipped/tokenizer").to(device), load_latent_space("shipped/diffusion")
    size = tokenizer.config.image_size
    test, train = (open_images("emoji", split=split, image_size=size, labels=LABELS) for split in ("test", "train"))
    rebuilt = evaluate_reconstruction(tokenizer, test, protocol=EvalProtocol(task="reconstruction"), device=device)
    return {"reconstruction": rebuilt.to_json(), "generation": generation(tokenizer, space, test, train, seed).to_json()}


def generation(tokenizer, space: LatentSpace, test, train, seed: int):
    """KID of guided samples, of the test images' classes, to the test images."""
    device = pick_device()
    net, model = load_net("efficientnet_lite2", input_size=128).to(device), load_diffusion("shipped/diffusion").to(device)
    samples = generate(model, tokenizer, space.to(device), test.labels, seed=seed + 1, **SAMPLING)
    picked = torch.linspace(0, len(train) - 1, len(test)).long()
    pictures = {"samples": samples, "test": test.batch(torch.arange(len(test)))[0], "train": train.batch(picked)[0]}
    sets = {name: make_reference(images, net, name=name) for name, images in pictures.items()}
    guidance = SAMPLING["guidance"]
    protocol = EvalProtocol(
        sampler="euler", steps=SAMPLING["num_steps"], path=model.trained_path, guidance_scale=guidance.scale,
        guidance_low=guidance.low, guidance_high=guidance.high, seed=seed + 1,
    )  # fmt: skip
    return evaluate_generation(
        sets["samples"], sets["test"], second_reference=sets["train"], net=net, protocol=protocol, metrics=["kid"]
    )


if __name__ == "__main__":
    main()
