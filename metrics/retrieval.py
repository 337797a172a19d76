"""Does the generator use its condition? Where image i is found from its sample, and how near it is beside others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from torch_utils import rng
from torch_utils.neighbors import retrieval_ranks


def retrieval_rank(
    gen_features: torch.Tensor, real_features: torch.Tensor, indices: Sequence[int] | torch.Tensor
) -> dict[str, float]:
    """Median of `retrieval_ranks`, chance (n + 1) / 2 for n real images, and their ratio (1 = condition unused)."""
    median = retrieval_ranks(gen_features, real_features, indices).quantile(0.5).item()
    chance = (len(real_features) + 1) / 2
    return {"median_rank": median, "chance": chance, "ratio": median / chance}


def derangement(count: int) -> torch.Tensor:
    """A fixed random cycle through ``range(count)``, count at least 2, as ``[count]``: no number maps to itself.

    Random, since neighbours by number are often of one class or one place.
    """
    assert count >= 2, "one image has no other"
    order = torch.randperm(count, generator=rng.generator("metrics", "derangement", count))
    other = torch.empty_like(order)
    other[order] = order.roll(-1)
    return other


def retrieval_similarity(
    gen_features: torch.Tensor, real_features: torch.Tensor, indices: Sequence[int] | torch.Tensor
) -> dict[str, float]:
    """Mean cosine of image k with real image ``indices[k]``, and with another one: the shuffled control.

    ``gen_features [n, D]`` and ``real_features [m, D]``, m at least 2, after subtracting the real mean, as in
    `retrieval_ranks`. The two are equal, up to chance, where the condition is unused.
    """
    centre = real_features.double().mean(0)
    reals = F.normalize(real_features.double() - centre, dim=1)
    fakes = F.normalize(gen_features.double() - centre, dim=1)
    own = torch.as_tensor(indices, dtype=torch.long)
    assert len(own) == len(fakes), "one index per generated image"
    other = derangement(len(reals))[own]
    return {"similarity": (fakes * reals[own]).sum(1).mean().item(),
            "shuffled": (fakes * reals[other]).sum(1).mean().item()}
