"""Flow-matching transformers on (B, N, C) latents: the model, the paths and losses, the samplers."""
