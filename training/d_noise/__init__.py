"""Noise in front of the discriminator: none, or diffusion of its image or of its features (Wang et al. 2022)."""
