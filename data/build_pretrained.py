"""Build data/pretrained: the tokenizer and the diffusion model that come with the project, trained on the shipped images.

    python data/build_pretrained.py [--longer 4] [--seed 0] [--runs FOLDER]

Preset `tiny`, with `--longer` times its steps in every stage; can be stopped anywhere and started again. What is trained is
rounded to fp16, and scored as it is shipped: index.json has the scores with their protocol, the sha256 of every file, and what
the trainings record about themselves.
"""

import argparse
import hashlib

import torch

from maetok_lab.config import override
from maetok_lab.data.images import open_images
from maetok_lab.data.latents import LatentCaching, LatentDataset, LatentSpace, load_latent_space, write_latents
from maetok_lab.device import pick_device, pick_precision
from maetok_lab.diffusion.loading import export_diffusion, load_diffusion
from maetok_lab.diffusion.sampling import Guidance
from maetok_lab.evaluation.generation import evaluate_generation, make_reference
from maetok_lab.evaluation.protocol import EvalProtocol
from maetok_lab.evaluation.reconstruction import evaluate_reconstruction
from maetok_lab.evaluation.samples import generate
from maetok_lab.files import write_json
from maetok_lab.nets import load_net
from maetok_lab.runs import Run
from maetok_lab.tokenizer.loading import export_tokenizer, load_auxiliary, load_tokenizer
from maetok_lab.training.diffusion import train_diffusion
from maetok_lab.training.presets import DECODER_TUNING, DIFFUSION_TRAINING, TOKENIZER_TRAINING, diffusion_training
from maetok_lab.training.tokenizer import decoder_tuning, finetune_decoder, train_tokenizer
from maetok_lab.weights import SHIPPED
from maetok_lab.widgets.live import LiveTraining

PRESET, LABELS = "tiny", "category-style"
SAMPLING = {"num_steps": 40, "guidance": Guidance(3.0, 0.0, 0.75)}


def main() -> None:
    """Train, export, score what was exported."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--longer", type=int, default=4, help="times the preset's steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", help="folder for the runs; runs/ beside the library by default")
    options = parser.parse_args()
    tuned, cache, diffusion = train(options.longer, options.seed, options.runs)
    export(tuned, cache, diffusion)
    scores = score(options.seed)
    files = {str(path.relative_to(SHIPPED)): path for path in sorted(SHIPPED.rglob("*.safetensors"))}
    write_json(SHIPPED / "index.json", {
        "sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
        "command": f"python data/build_pretrained.py --longer {options.longer} --seed {options.seed}",
        "scores": scores,
        "runs": {run.name: {"config": run.config, "provenance": run.provenance} for run in (tuned, cache, diffusion)},
    })  # fmt: skip


def train(longer: int, seed: int, root: str | None) -> tuple[Run, Run, Run]:
    """The three runs that are exported: tuned tokenizer, latents, diffusion."""
    device = pick_device()
    common = {"seed": seed, "precision": pick_precision(device)}
    config = TOKENIZER_TRAINING[PRESET]
    images = open_images("emoji", image_size=config.model.image_size, labels=LABELS)
    config = override(config, common | {"num_steps": longer * config.num_steps, "images": images.fingerprint})
    name, cpu = f"pretrained-{PRESET}-s{seed}", device.type == "cpu"
    first = Run.open(f"{name}-tokenizer", config, root=root)
    follow("tokenizer", train_tokenizer(config, images, first, cpu=cpu))
    tuning = decoder_tuning(config, parent=first, **DECODER_TUNING[PRESET])
    tuning = override(tuning, {"num_steps": longer * tuning.num_steps})
    tuned = Run.open(f"{name}-tuned", tuning, root=root, parents=[first])
    follow("decoder tuning", finetune_decoder(tuning, images, tuned, parent=first, cpu=cpu))
    tokenizer = load_tokenizer(tuned.folder).to(device)
    caching = LatentCaching(tokenizer=tokenizer.fingerprint, images=images.fingerprint, flips=True)
    cache = Run.open(f"{name}-latents", caching, root=root, parents=[tuned])
    for _ in write_latents(tokenizer, images, caching, cache, device=device):
        pass
    latents = LatentDataset(cache, device=device)
    steps = longer * DIFFUSION_TRAINING[PRESET]["num_steps"]
    flow = diffusion_training(PRESET, latents, num_classes=images.num_classes, **common, num_steps=steps)
    diffusion = Run.open(f"{name}-diffusion", flow, root=root, parents=[cache])
    follow("diffusion", train_diffusion(flow, latents, diffusion, cpu=cpu))
    return tuned, cache, diffusion


def follow(title: str, records) -> None:
    """Show how far a training is."""
    live = LiveTraining(title)
    for record in records:
        live.update(record)


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
