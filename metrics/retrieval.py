"""Does the generator use its condition? The rank at which image i is found from G(z, h_i)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_utils.neighbors import retrieval_ranks


def retrieval_rank(
    gen_features: torch.Tensor, real_features: torch.Tensor, indices: Sequence[int] | torch.Tensor
) -> dict[str, float]:
    """Median of `retrieval_ranks`, chance (n + 1) / 2 for n real images, and their ratio (1 = condition unused)."""
    median = retrieval_ranks(gen_features, real_features, indices).quantile(0.5).item()
    chance = (len(real_features) + 1) / 2
    return {"median_rank": median, "chance": chance, "ratio": median / chance}
