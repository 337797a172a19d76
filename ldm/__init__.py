"""Latent diffusion: a DDIM that learns the distribution of a generator's instance latents f."""
