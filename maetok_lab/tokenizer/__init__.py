"""The tokenizer (images <-> latent tokens), what shapes its latents while it trains, and other people's weights."""
