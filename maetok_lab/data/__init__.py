"""What goes in: labelled images (`images`) and cached latents (`latents`)."""

from maetok_lab.lazy import lazy_names

_NAMES, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "caching": "cached_latents",
        "images": "ImageSource open_images open_splits",
        "latents": "LatentCaching LatentDataset LatentSpace load_latent_space"
        " spread_rows write_latents",
    },
)
