"""Make the README's pictures: start_here.png from the runs of `make demo`, and method.png from the
shipped weights.

python docs/make_picture.py [start_here] [method]
"""

import sys
from pathlib import Path

import matplotlib
import torch

import maetok_lab as lab
from maetok_lab import plots

matplotlib.use("Agg")
DOCS = Path(__file__).parent


def start_here() -> None:
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
    figure.savefig(DOCS / "start_here.png", dpi=110, bbox_inches="tight")


def method() -> None:
    """The method as notebook 00 draws it: an image through the tokenizer, noise to a sample."""
    tokenizer = lab.load_tokenizer("shipped/tokenizer")
    decoders = lab.tokenizer.load_auxiliary("shipped/tokenizer")
    model = lab.load_diffusion("shipped/diffusion")
    space = lab.load_latent_space("shipped/diffusion")
    size = tokenizer.config.image_size
    test = lab.open_images("emoji", split="test", image_size=size, labels="category-style")
    images, _ = test.batch([180])
    mask = lab.analysis.draw_masks(images, tokenizer.config.patch_size, ratio=0.5)[0]
    label_name = "Smileys & Emotion / twemoji"

    parts = (tokenizer, decoders, model, space, images[0], mask)
    told = {"label": test.class_names.index(label_name), "label_name": label_name}
    sampling = {"num_steps": 20, "guidance": lab.Guidance(3.0, 0.0, 0.75)}
    figure = plots.plot_method(*parts, **told, **sampling)
    figure.savefig(DOCS / "method.png", dpi=164)  # twice as fine as 900 px of a page


PICTURES = {"start_here": start_here, "method": method}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
