"""Perceptual diversity: how far apart are images in the detector's features, in all and under one condition?"""

from __future__ import annotations

import torch

_BLOCK = 1024


def mean_pairwise_distance(features: torch.Tensor) -> float:
    """Mean Euclidean distance over all pairs of different rows of ``features [n, D]``, n at least 2."""
    count = len(features)
    assert count >= 2, "a distance needs two images"
    x = features.double()
    x = x - x.mean(0)  # smaller norms lose fewer digits
    total = 0.0
    for start in range(0, count, _BLOCK):
        total += torch.cdist(x[start:start + _BLOCK], x[start:]).triu(1).sum().item()
    return total / (count * (count - 1) / 2)


def within_groups(features: torch.Tensor, groups: torch.Tensor) -> tuple[float, int] | None:
    """Mean of `mean_pairwise_distance` over the groups with two images or more, and their number; None without any.

    ``groups [n]``: the condition that each image was made with.
    """
    order = groups.argsort(stable=True)
    sizes = groups.unique(return_counts=True)[1].tolist()
    parts = [part for part in features[order].split(sizes) if len(part) >= 2]
    if not parts:
        return None
    return sum(mean_pairwise_distance(part) for part in parts) / len(parts), len(parts)
