"""Exponential moving average of a network's weights."""

from __future__ import annotations

import torch


def ema_beta(batch_size: int, cur_nimg: int, half_life_kimg: float, rampup: float | None) -> float:
    """Decay of one step so that a weight's share halves every `half_life_kimg` thousand images.

    `rampup`: the half-life is at most this share of the images seen so far; None switches that off.
    """
    half_life_nimg = half_life_kimg * 1000
    if rampup is not None:
        half_life_nimg = min(half_life_nimg, cur_nimg * rampup)
    return 0.5 ** (batch_size / max(half_life_nimg, 1e-8))


@torch.no_grad()
def ema_update(ema: torch.nn.Module, net: torch.nn.Module, beta: float) -> None:
    """Parameters of `ema` move to those of `net` by 1 - `beta`; buffers are copied (facts of the official loop)."""
    targets: list[torch.Tensor] = list(ema.parameters())
    sources: list[torch.Tensor] = list(net.parameters())
    if targets:
        torch._foreach_lerp_(targets, sources, 1.0 - beta)
    copies, originals = list(ema.buffers()), list(net.buffers())
    if copies:
        torch._foreach_copy_(copies, originals)
