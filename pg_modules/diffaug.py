"""Differentiable augmentation of real and generated images (Zhao et al. 2020).

All randomness is drawn on the CPU from one `torch.Generator` and then moved, so devices see the same augmentations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch_utils.device import sent, sent_like

TRANSLATION_RATIO = 0.125
CUTOUT_RATIO = 0.2


def parse_policy(policy: str) -> tuple[str, ...]:
    """``"color,translation,cutout"`` to its parts, "" to none; ValueError names an unknown part."""
    parts = tuple(part for part in policy.split(",") if part)
    for part in parts:
        if part not in AUGMENTATIONS:
            raise ValueError(f"diffaug {part!r} is unknown; choose from {','.join(AUGMENTATIONS)}")
    return parts


def diffaug(x: torch.Tensor, policy: str, generator: torch.Generator | None) -> torch.Tensor:
    """Images ``[N, C, H, W]`` augmented one by one; gradients flow through.

    `policy`: comma-separated parts of `AUGMENTATIONS`, applied in that order. `generator`: on the CPU; ValueError
    when it is None and the policy isn't empty.
    """
    parts = parse_policy(policy)
    if parts and generator is None:
        raise ValueError(f"diffaug {policy!r} needs a torch.Generator")
    for part in parts:
        assert generator is not None
        x = AUGMENTATIONS[part](x, generator)
    return x


def _uniform(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return sent_like(torch.rand(x.shape[0], 1, 1, 1, generator=generator, device="cpu"), x)


def _integers(n: int, low: int, high: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """``[n, 1]`` integers from low to high, both included."""
    return sent(torch.randint(low, high + 1, (n, 1), generator=generator, device="cpu"), device)


def color(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness ± 0.5, then saturation × 0 to 2, then contrast × 0.5 to 1.5."""
    x = x + (_uniform(x, generator) - 0.5)
    x = torch.lerp(x.mean(dim=1, keepdim=True), x, _uniform(x, generator) * 2)
    return torch.lerp(x.mean(dim=(1, 2, 3), keepdim=True), x, _uniform(x, generator) + 0.5)


class _Shift(torch.autograd.Function):
    """Moves images by whole pixels, filling with zeros. The gradient is the shift back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(down, right)
        height, width = x.shape[2:]
        rows = torch.arange(height, device=x.device) - down
        columns = torch.arange(width, device=x.device) - right
        inside = (((rows >= 0) & (rows < height))[:, None, :, None]
                  & ((columns >= 0) & (columns < width))[:, None, None, :])
        index = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
        moved = x.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, x.shape[1], -1))
        return moved.view(x.shape).masked_fill(~inside, 0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        down, right = ctx.saved_tensors
        return _Shift.apply(grad_outputs[0], -down, -right), None, None


def translation(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift by up to an eighth of the side in both directions."""
    n, _, height, width = x.shape
    far_down, far_right = (int(size * TRANSLATION_RATIO + 0.5) for size in (height, width))
    down = _integers(n, -far_down, far_down, generator, x.device)
    right = _integers(n, -far_right, far_right, generator, x.device)
    return _Shift.apply(x, down, right)


def cutout(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A rectangle of a fifth of the side becomes zero; it may lie partly outside."""
    n = x.shape[0]
    masks = []
    for side in x.shape[2:]:
        cut = int(side * CUTOUT_RATIO + 0.5)
        start = _integers(n, 0, side - cut % 2, generator, x.device) - cut // 2
        position = torch.arange(side, device=x.device)
        masks.append((position >= start) & (position < start + cut))
    return x.masked_fill(masks[0][:, None, :, None] & masks[1][:, None, None, :], 0)


AUGMENTATIONS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}
