"""Transformer parts that tokenizer and diffusion share: nothing here knows about images, latents or time."""
