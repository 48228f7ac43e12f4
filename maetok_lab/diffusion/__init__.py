"""Flow-matching transformers on (B, N, C) latents: model, paths and loss, samplers, their cost."""

from maetok_lab.lazy import lazy_names

_NAMES, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "cost": "flops sampling_cost",
        "lightningdit": "from_lightningdit",
        "loading": "export_diffusion load_diffusion",
        "model": "DIFFUSION DiffusionTransformer",
        "released": "from_released",
        "sampling": "Guidance sample sample_steps",
    },
)
