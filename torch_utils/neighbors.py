"""Nearest neighbours by cosine, for diagnostics of training and for metrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_BLOCK = 1024


def retrieval_ranks(
    gen_features: torch.Tensor, real_features: torch.Tensor, indices: Sequence[int] | torch.Tensor
) -> torch.Tensor:
    """Rank ``[n]`` (float64, 1 = first) of real image ``indices[k]`` among all reals, sought from image k.

    ``gen_features [n, D]`` and ``real_features [m, D]`` are compared by cosine after subtracting the real
    mean: without that, all features of one detector point the same way. Equally near images share their
    mean rank, so a detector or generator that tells nothing apart scores chance.
    """
    centre = real_features.double().mean(0)
    reals = torch.nn.functional.normalize(real_features.double() - centre, dim=1)
    fakes = torch.nn.functional.normalize(gen_features.double() - centre, dim=1)
    targets = torch.as_tensor(indices, dtype=torch.long)
    assert len(targets) == len(fakes), "one index per generated image"
    ranks = []
    for start in range(0, len(fakes), _BLOCK):
        part = slice(start, start + _BLOCK)
        similarity = fakes[part] @ reals.T
        own = similarity.gather(1, targets[part, None])
        tie = (similarity - own).abs() <= 1e-12
        nearer = ((similarity > own) & ~tie).sum(1)
        ranks.append(1 + nearer + (tie.sum(1) - 1) / 2)
    return torch.cat(ranks).double()
