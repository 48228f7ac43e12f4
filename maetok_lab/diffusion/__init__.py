"""Flow-matching transformers on (B, N, C) latents: model, paths and loss, samplers, their cost."""
