"""Make start_here.png, the picture of the README, from the runs that `make demo` left: python
docs/make_picture.py
"""

from pathlib import Path

import matplotlib
import torch

from maetok_lab.data.images import open_images
from maetok_lab.data.latents import load_latent_space
from maetok_lab.diffusion.loading import load_diffusion
from maetok_lab.diffusion.sampling import Guidance
from maetok_lab.generation.images import generate, reconstruct
from maetok_lab.plots.images import plot_reconstructions, plot_rows
from maetok_lab.tokenizer.loading import load_tokenizer

matplotlib.use("Agg")
PICTURE = Path(__file__).parent / "start_here.png"


def main() -> None:
    """The notebook's own seed and guidance: test images above their reconstructions, then eight
    samples of each class.
    """
    from matplotlib import pyplot

    tokenizer, model = (
        load_tokenizer("tokenizer-tiny-s0-tuned"),
        load_diffusion("diffusion-tiny-s0"),
    )
    test = open_images(
        "emoji", split="test", image_size=tokenizer.config.image_size, labels="category-style"
    )
    originals = test.batch(torch.linspace(0, len(test) - 1, 48).long())[0]
    labels = torch.arange(test.num_classes).repeat_interleave(8)
    space = load_latent_space("latents-tiny-s0-train")
    samples = generate(
        model, tokenizer, space, labels, seed=0, num_steps=40, guidance=Guidance(3.0, 0.0, 0.75)
    )
    rows = {}
    for name, images in zip(test.class_names, samples.split(8)):
        rows.setdefault(name.split(" / ")[0], []).append(images)
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(11, 5.6), height_ratios=[4, 9], layout="constrained"
    )
    plot_reconstructions(originals, reconstruct(tokenizer, originals), columns=24, ax=above)
    plot_rows({name: torch.cat(parts) for name, parts in rows.items()}, ax=below)
    figure.savefig(PICTURE, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
