"""Checkpoints, devices, randomness, EMA and logged statistics."""
