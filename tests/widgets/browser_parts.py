"""What the browser tests show: seeded parts, alike in the kernel and in the test."""

from types import SimpleNamespace

import torch

from maetok_lab.data.images import open_images
from maetok_lab.data.latents import LatentSpace
from maetok_lab.diffusion.model import DIFFUSION, DiffusionTransformer
from maetok_lab.tokenizer.auxiliary import AuxiliaryConfig, AuxiliaryDecoder
from maetok_lab.tokenizer.model import TOKENIZERS, Tokenizer


def parts() -> SimpleNamespace:
    """A seeded tokenizer with a HOG decoder, its latents of some images, a diffusion model."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the same sums in the same order in both processes
    tokenizer = Tokenizer(TOKENIZERS["test"]).eval()
    decoders = {"hog": AuxiliaryDecoder(AuxiliaryConfig(), TOKENIZERS["test"]).eval()}
    source = open_images("emoji", split="val", image_size=64)
    with torch.inference_mode():
        latents = tokenizer.encode(source.batch(torch.arange(len(source)))[0])
    model = DiffusionTransformer(
        DIFFUSION["test"], num_tokens=32, latent_dim=4, num_classes=3
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.tokenizer_fingerprint = tokenizer.fingerprint
    model.trained_path = "linear"
    space = LatentSpace(tokenizer.fingerprint, latents.mean((0, 1)), latents.std((0, 1)))
    return SimpleNamespace(
        tokenizer=tokenizer,
        decoders=decoders,
        source=source,
        latents=latents,
        model=model,
        space=space,
    )


def mask_demo():
    """The mask demo: this tokenizer and another one of the same kind."""
    from maetok_lab.widgets.mask_demo import MaskDemo

    small = parts()
    torch.manual_seed(1)
    other = Tokenizer(TOKENIZERS["test"]).eval()
    return MaskDemo(
        small.tokenizer, other, small.source, decoders=small.decoders, count=4, num_ratios=5
    )


def mask_studio():
    """The mask studio on these parts."""
    from maetok_lab.widgets.mask_studio import MaskStudio

    small = parts()
    return MaskStudio(small.tokenizer, small.source, decoders=small.decoders)


def latent_map():
    """The latent map on these parts."""
    from maetok_lab.widgets.latent_map import LatentMap

    small = parts()
    return LatentMap(small.latents, small.source, small.tokenizer, components=0)


def large_map():
    """50,000 points: the images' latents and normal noise as an overlay."""
    from maetok_lab.widgets.latent_map import LatentMap

    small = parts()
    noise = torch.randn(
        50_000 - len(small.latents),
        *small.latents.shape[1:],
        generator=torch.Generator().manual_seed(0),
    )
    return LatentMap(
        small.latents,
        small.source,
        small.tokenizer,
        components=0,
        overlays={"noise": noise},
        colour="run",
    )


async def live_training():
    """A training of far more steps than anyone waits for, into runs/ beside the notebook."""
    from maetok_lab.runs import Run
    from maetok_lab.training.presets import ladder_training
    from maetok_lab.training.tokenizer import train_tokenizer
    from maetok_lab.widgets.live import follow

    torch.set_num_threads(1)
    images = open_images("emoji", split="val", image_size=64)
    config = ladder_training("test", "hog", images=images.fingerprint, num_steps=100_000)
    run = Run.open("live", config, root="runs")
    await follow(train_tokenizer(config, images, run, cpu=True), "live")


def sampler_studio():
    """The sampler studio on these parts."""
    from maetok_lab.widgets.sampler_studio import SamplerStudio

    small = parts()
    return SamplerStudio(
        small.model,
        small.space,
        small.tokenizer,
        class_names=["cat", "dog", "fish"],
        count=4,
        num_steps=6,
    )
