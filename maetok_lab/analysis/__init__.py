"""Latents to tables: mixture curves, 2-D maps, probe accuracy, the diffusability card and the theory's toy."""
