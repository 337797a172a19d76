"""Instance conditioning with neighbours (IC-GAN, Casanova et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch_utils.device import sent
from torch_utils.neighbors import knn
from torch_utils.rng import generator as keyed
from training.conditioning.base import Batch, Condition, Prepared
from training.conditioning.disp import InstancePrior


class InstanceNeighbors(InstancePrior):
    """c = h_i, the unit-length feature of an instance; the real image for it is one of its k nearest neighbours.

    Neighbours are drawn uniformly; the instance itself is none of them. Fakes get instances of their own, drawn
    independently of those of the reals. A flipped instance has the flipped neighbours of the unflipped one. With
    classes, the class is that of the neighbour.
    """

    draws_fakes = True

    def __init__(self, neighbors: int = 5, c_dim: int = 0) -> None:
        """neighbors: k; 50 was used for ImageNet, 5 for small sets."""
        super().__init__(c_dim)
        self.k = neighbors
        self.seed, self.count, self.total = 0, 0, 0

    def prepare(self, data: Prepared) -> None:
        super().prepare(data)
        assert data.f is not None, "neighbours need the features of the whole set"
        self.seed, self.count, self.total = data.seed, data.dataset.num_images, len(data.dataset)
        self.neighbors = torch.as_tensor(knn(data.f.flat(self.count), self.k))
        labels = data.dataset.labels
        self.labels = None if labels is None else torch.from_numpy(labels)

    def _neighbors_of(self, indices: Sequence[int], rng: torch.Generator) -> torch.Tensor:
        origins = torch.as_tensor(indices)
        choice = torch.randint(self.k, (len(origins),), generator=rng)
        found = self.neighbors[origins % self.count, choice].long()
        return found + self.count * (origins >= self.count)

    def pair(self, indices: Sequence[int], draws: Sequence[int]) -> list[int]:
        return self._neighbors_of(indices, keyed(self.seed, "neighbors", int(draws[0]))).tolist()

    def fake_condition(self, batch: Batch, G: Any, generator: torch.Generator) -> Condition:
        assert self.table is not None
        origins = torch.randint(self.total, (len(batch.img),), generator=generator)
        labels = None
        if self.c_dim:
            assert self.labels is not None
            labels = sent(self.labels[self._neighbors_of(origins.tolist(), generator) % self.count], batch.img.device)
        return self._join(sent(self.table[origins], batch.img.device), labels)
