"""The tokenizer (images <-> latent tokens), what shapes its latents, and other people's weights."""

from maetok_lab.lazy import lazy_names

_NAMES, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "anatomy": "Surgery operate",
        "foreign": "open_tokenizer",
        "loading": "export_tokenizer load_auxiliary load_tokenizer",
        "losses": "LossConfig",
        "masking": "random_mask",
        "model": "TOKENIZERS Tokenizer",
        "perceptual": "make_perceptual",
        "registry": "published_results study_results tokenizers",
        "released": "from_released",
        "targets": "hog",
    },
)
