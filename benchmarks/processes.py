"""How far several processes drift from one: the same training by AdamW and by Muon.

    python benchmarks/processes.py [--preset test --steps 100 --processes 1 2 4 --parts 1 2 4]

Sums over a batch are rounded in another order by several processes, as by one that takes it in
several parts. What becomes of that is the optimizer's: Muon orthogonalises in bf16.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from timing import as_markdown

from maetok_lab.config import override
from maetok_lab.data.images import ImageSource, open_images
from maetok_lab.runs import Run
from maetok_lab.training.presets import tokenizer_training
from maetok_lab.training.recipe import TokenizerTraining
from maetok_lab.training.tokenizer import train_tokenizer

Weights = dict[str, torch.Tensor]


def main(words: list[str] | None = None) -> None:
    """Print a table: how far apart losses and weights are after the last step."""
    options = arguments(words)
    ways = [(processes, 1) for processes in options.processes if processes > 1]
    ways += [(1, parts) for parts in options.parts if parts > 1]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for optimizer in ("adamw", "muon"):
            apart = drift(optimizer, ways, options.preset, options.steps, Path(folder))
            for (processes, parts), (losses, weights) in apart.items():
                row = {"optimizer": optimizer, "processes": processes, "parts": parts}
                row |= {"steps": options.steps, "largest difference of a loss": f"{losses:.1e}"}
                rows.append(row | {"of the weights, in parts of the way": f"{weights:.1e}"})
    print(as_markdown(rows))


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="test")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4])
    return parser.parse_args(words)


def drift(
    optimizer: str, ways: list[tuple[int, int]], preset: str, steps: int, root: Path
) -> dict[tuple[int, int], tuple[float, float]]:
    """By (processes, parts): the largest relative difference of a loss to one process's, and that
    of all weights after the last step, relative to the way that they went.
    """
    changes = {"precision": "fp32", "optimizer.name": optimizer, "num_steps": steps, "log_every": 1}
    config = override(tokenizer_training(preset), changes | {"save_every": steps, "workers": 0})
    images = open_images("emoji", split="val", image_size=config.model.image_size)
    _, start = trained(override(config, {"num_steps": 1}), 1, 1, images, root)
    losses, weights = trained(config, 1, 1, images, root)
    apart = {}
    for processes, parts in ways:
        others, ends = trained(config, processes, parts, images, root)
        apart[processes, parts] = (
            ((others - losses) / losses).abs().max().item(),
            distance(ends, weights) / distance(start, weights),
        )
    return apart


def trained(
    config: TokenizerTraining, processes: int, parts: int, images: ImageSource, root: Path
) -> tuple[torch.Tensor, Weights]:
    """The loss of each step, and the weights after the last one."""
    config = override(config, {"accumulate": parts})
    name = f"{config.optimizer.name}-{config.num_steps}-{processes}-{parts}"
    with Run.open(name, config, root=root) as run:
        for _ in train_tokenizer(config, images, run, cpu=True, processes=processes):
            pass
    losses = torch.tensor(run.metrics("train")["pixel"].to_numpy())
    return losses, run.load_checkpoint().tensors["model"]


def distance(one: Weights, other: Weights) -> float:
    """Euclidean, over all tensors."""
    return sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5


if __name__ == "__main__":
    main()
