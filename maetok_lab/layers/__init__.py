"""Transformer parts that tokenizer and diffusion share; none knows of images, latents or time."""
