"""The tokenizer (images <-> latent tokens), what shapes its latents, and other people's weights."""
