"""Views that follow what happens; each works without a live front end too."""

from maetok_lab.lazy import lazy_names

_NAMES, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "latent_map": "LatentMap",
        "live": "LiveTraining follow",
        "mask_demo": "MaskDemo",
        "mask_studio": "MaskStudio",
        "run_browser": "RunBrowser",
        "sampler_studio": "SamplerStudio",
    },
)
