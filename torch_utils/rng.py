"""Randomness that depends on (seed, what it is for, images seen), never on batch size, workers or restarts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def mix_seed(*keys: int | str) -> int:
    """A 63-bit seed from any integers and strings; equal keys give equal seeds on every machine."""
    text = "/".join(str(key) for key in keys)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*keys: int | str) -> torch.Generator:
    """A CPU generator seeded by `mix_seed`. Draws are made on the CPU and moved, so devices agree."""
    return torch.Generator("cpu").manual_seed(mix_seed(*keys))


def sample_normal(seeds: Sequence[int], shape: Sequence[int], *keys: int | str) -> torch.Tensor:
    """Standard normal ``[len(seeds), *shape]``; row i depends on ``seeds[i]`` and `keys` alone."""
    rows = [torch.randn(tuple(shape), generator=generator("sample", seed, *keys)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)
