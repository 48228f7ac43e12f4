"""Numbers of short seeded runs, to the last bit: what a change of the code's shape must not change.

python tests/seeded_numbers.py   writes tests/fixtures/seeded_numbers.json anew, which a change of
results alone allows
"""

import hashlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from maetok_lab.analysis.card import CardSettings
from maetok_lab.data.images import open_images
from maetok_lab.data.latents import LatentCaching, LatentDataset, write_latents
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.diffusion.sampling import Guidance
from maetok_lab.evaluation.generation import evaluate_generation
from maetok_lab.evaluation.protocol import EvalProtocol
from maetok_lab.evaluation.reconstruction import evaluate_reconstruction
from maetok_lab.experiments.cards import card_run
from maetok_lab.generation.images import generate
from maetok_lab.nets import load_net
from maetok_lab.runs import Run
from maetok_lab.tokenizer.discriminators import AdversarialConfig
from maetok_lab.tokenizer.loading import load_tokenizer
from maetok_lab.training.diffusion import train_diffusion
from maetok_lab.training.presets import (
    ARCHITECTURES,
    DECODER_TUNING,
    diffusion_training,
    ladder_training,
)
from maetok_lab.training.tokenizer import decoder_tuning, finetune_decoder, train_tokenizer

FILE = Path(__file__).parent / "fixtures" / "seeded_numbers.json"
CPU = torch.device("cpu")


def processor() -> str:
    """What decides the last bits of a sum: torch's version, and the kind of processor."""
    names = [
        line
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    name = names[0].partition(":")[2].strip()
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {name}"


def tensor_hash(*tensors: torch.Tensor) -> str:
    """A hash of the bits of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def run_numbers(run: Run) -> dict[str, Any]:
    """Every logged line of a run, and a hash of each group of tensors in its newest checkpoint."""
    checkpoint = run.load_checkpoint()
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    groups = {
        name: tensor_hash(*(tensors[key] for key in sorted(tensors)))
        for name, tensors in sorted(checkpoint.tensors.items())
    }
    return {"metrics": lines, "step": checkpoint.step, "hashes": groups}


def tokenizer_numbers(root: Path, images: dict) -> dict[str, Any]:
    """Trainings of a plain, a KL and a masked tokenizer, one in parts beside a discriminator, and
    of a tuned decoder.
    """
    adversary = AdversarialConfig(
        discriminator="patchgan",
        width=8,
        layers=2,
        trains_from=3,
        counts_from=6,
        learning_rate=1e-3,
    )
    cases = {
        "ae": ("ae", {}),
        "kl": ("kl", {"precision": "bf16"}),
        "masked": ("hog", {}),
        "adversarial": (
            "all",
            {
                "losses__adversarial": adversary,
                "losses__perceptual": "squeezenet",
                "accumulate": 2,
                "crop": "scale",
            },
        ),
    }
    numbers = {}
    for name, (rung, changes) in cases.items():
        common = {
            "num_steps": 12,
            "log_every": 4,
            "save_every": 6,
            "picture_every": 6,
            "workers": 0,
        }
        config = ladder_training("test", rung, **({"precision": "fp32"} | common | changes))
        run = Run.open(f"tokenizer-{name}", config, root=root)
        for _ in train_tokenizer(config, images["train"], run, preview=images["val"], cpu=True):
            pass
        numbers[name] = run_numbers(run)
    parent = Run(root / "tokenizer-masked")
    tuning = decoder_tuning(
        ladder_training("test", "hog", precision="fp32", log_every=4, workers=0),
        parent=parent,
        **DECODER_TUNING["test"],
    )
    run = Run.open("tokenizer-tuned", tuning, root=root, parents=[parent])
    for _ in finetune_decoder(tuning, images["train"], run, parent=parent, cpu=True):
        pass
    return numbers | {"tuned": run_numbers(run)}


def cache_latents(root: Path, images: dict) -> dict[str, LatentDataset]:
    """The tuned tokenizer's latents of two splits."""
    tokenizer = load_tokenizer(root / "tokenizer-tuned")
    caches = {}
    for split in ("train", "test"):
        caching = LatentCaching(
            tokenizer=tokenizer.fingerprint,
            images=images[split].fingerprint,
            flips=split == "train",
        )
        run = Run.open(f"latents-{split}", caching, root=root)
        for _ in write_latents(tokenizer, images[split], caching, run, device=CPU):
            pass
        caches[split] = LatentDataset(run)
    return caches


def diffusion_numbers(
    root: Path, latents: dict[str, LatentDataset], num_classes: int
) -> dict[str, Any]:
    """Trainings of both architectures; AdamW and Muon, two averages, fp32 and bf16."""
    changes = {
        "sit": {"precision": "fp32", "ema_decays": (0.9, 0.5), "optimizer.name": "adamw"},
        "lightningdit": {"precision": "bf16"},
    }
    numbers = {}
    for name in ("sit", "lightningdit"):
        fields = (
            ARCHITECTURES[name] | changes[name] | {"num_steps": 12, "log_every": 4, "save_every": 6}
        )
        config = diffusion_training("test", latents["train"], num_classes=num_classes, **fields)
        run = Run.open(f"diffusion-{name}", config, root=root, parents=[latents["train"].run])
        for _ in train_diffusion(
            config, latents["train"], run, validation=latents["test"], cpu=True
        ):
            pass
        numbers[name] = run_numbers(run)
    return numbers


def sampling_numbers(root: Path, latents: dict[str, LatentDataset], images: dict) -> dict[str, Any]:
    """Images of every sampler with and without guidance, and their scores."""
    model, tokenizer = (
        load_diffusion(root / "diffusion-sit"),
        load_tokenizer(root / "tokenizer-tuned"),
    )
    space = latents["train"].space
    labels = images["test"].labels[:24]
    settings = {
        "euler": {"method": "euler", "num_steps": 4},
        "euler, guided": {"method": "euler", "num_steps": 4, "guidance": Guidance(2.0, 0.0, 0.75)},
        "heun, guided": {"method": "heun", "num_steps": 3, "guidance": Guidance(3.0, 0.2, 1.0)},
        "euler_maruyama": {"method": "euler_maruyama", "num_steps": 4},
    }
    numbers: dict[str, Any] = {}
    for name, options in settings.items():
        drawn = generate(model, tokenizer, space, labels, seed=3, batch_size=10, **options)
        numbers[name] = {
            "mean": drawn.mean().item(),
            "std": drawn.std().item(),
            "hashes": {"images": tensor_hash(drawn)},
        }
    net = load_net("efficientnet_lite2", input_size=64)
    originals = images["test"].batch(torch.arange(24))[0]
    protocol = EvalProtocol(sampler="euler_maruyama", steps=4, seed=3)
    score = evaluate_generation(
        drawn, originals, net=net, protocol=protocol, metrics=["kid", "precision", "recall"]
    )
    rebuilt = evaluate_reconstruction(tokenizer, originals, net=net)
    numbers["generation"] = {
        "metrics": score.metrics,
        "intervals": score.intervals,
        "floor": score.floor,
    }
    numbers["reconstruction"] = {"metrics": rebuilt.metrics, "intervals": rebuilt.intervals}
    return numbers


def card_numbers(root: Path, latents: dict[str, LatentDataset]) -> dict[str, Any]:
    """Every entry of a card: mixtures, spectrum, probes, geometry, the decoder under noise."""
    settings = CardSettings(components=(1, 4), restarts=2, decoded=16, pairs=4, diffusion_steps=12)
    run = card_run(
        "card",
        latents["train"],
        latents["train"].labels,
        latents["test"],
        latents["test"].labels,
        tokenizer=load_tokenizer(root / "tokenizer-tuned"),
        diffusion=Run(root / "diffusion-sit"),
        settings=settings,
        root=root,
    )
    return {name: value for name, value in run.summary.items() if name != "ended"}


def seeded_numbers(root: Path) -> dict[str, Any]:
    """All of them, computed with one thread into runs under `root`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            labels = {"labels": "category-style", "image_size": 64}
            images = {
                split: open_images("emoji", split=split, **labels)
                for split in ("train", "val", "test")
            }
            numbers: dict[str, Any] = {
                "processor": processor(),
                "tokenizer": tokenizer_numbers(root, images),
            }
            latents = cache_latents(root, images)
            drawn = latents["train"].batch(torch.arange(0, 400, 7))[0]
            numbers["latents"] = {
                "std": drawn.std().item(),
                "hashes": {"normalised": tensor_hash(drawn)},
            }
            numbers["diffusion"] = diffusion_numbers(root, latents, images["train"].num_classes)
            numbers["sampling"] = sampling_numbers(root, latents, images)
            numbers["card"] = card_numbers(root, latents)
            return json.loads(json.dumps(numbers))
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(json.dumps(seeded_numbers(Path(folder)), indent=1) + "\n")
    print(f"wrote {FILE}")
