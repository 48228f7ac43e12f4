"""Make start_here.png, the README's picture, from the runs of `make demo`.

python docs/make_picture.py
"""

from pathlib import Path

import matplotlib
import torch

import maetok_lab as lab
from maetok_lab import plots

matplotlib.use("Agg")
PICTURE = Path(__file__).parent / "start_here.png"


def main() -> None:
    """Test images above their reconstructions, then samples as the notebook draws them."""
    from matplotlib import pyplot

    tokenizer = lab.load_tokenizer("tokenizer-tiny-s0-tuned")
    model = lab.load_diffusion("diffusion-tiny-s0")
    space = lab.load_latent_space("latents-tiny-s0-train")
    size = tokenizer.config.image_size
    test = lab.open_images("emoji", split="test", image_size=size, labels="category-style")

    # test images, evenly spaced, since the set is sorted by class
    originals = test.batch(torch.linspace(0, len(test) - 1, 48).long())[0]
    reconstructions = lab.reconstruct(tokenizer, originals)

    # eight samples of each class, a row a category: its styles stand side by side
    labels = torch.arange(test.num_classes).repeat_interleave(8)
    sampling = {"num_steps": 20, "guidance": lab.Guidance(3.0, 0.0, 0.75)}
    samples = lab.generate(model, tokenizer, space, labels, seed=0, **sampling)
    parts = {}
    for class_name, images in zip(test.class_names, samples.split(8)):
        parts.setdefault(class_name.split(" / ")[0], []).append(images)
    rows = {category: torch.cat(images) for category, images in parts.items()}

    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(11, 5.6), height_ratios=[4, 9], layout="constrained"
    )
    plots.plot_reconstructions(originals, reconstructions, columns=24, ax=above)
    plots.plot_rows(rows, ax=below)
    figure.savefig(PICTURE, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
