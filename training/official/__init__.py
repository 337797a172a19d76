"""Snapshots of the official Projected GAN and StyleGAN2-ADA, made into checkpoints of this project."""
