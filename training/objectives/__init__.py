"""Objectives of other methods than Projected GAN and DIC-GAN, one file each, and what presets need of them."""

from __future__ import annotations

from collections.abc import Sequence


def lazy_adam(lr: float, betas: Sequence[float], interval: int) -> tuple[float, list[float]]:
    """Adam's learning rate and betas where a regulariser is a step of its own every `interval` iterations.

    The `interval` + 1 steps of Adam move and remember as much as `interval` steps would otherwise (Karras et al. 2020b,
    appendix B, "lazy regularization").
    """
    ratio = interval / (interval + 1)
    return lr * ratio, [beta**ratio for beta in betas]
