"""Self-conditioning (Self-Conditioned GAN, Liu et al. 2020): labels are clusters of the discriminator's features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from torch_utils.clustering import kmeans
from training.conditioning.cluster import ClusterLabels
from training.dataset import ImageDataset
from training.tables import LatentTable

BLOCK = 8192  # rows in memory at a time


class SelfConditioned(ClusterLabels):
    """Clusters of frozen features to begin with, then again and again of D's own.

    Each time k-means starts at the means of the former clusters in the new features, so that a cluster keeps its
    number and G's labels keep their meaning.
    """

    def __init__(self, clusters: int, encoder: Mapping[str, Any], recluster_kimg: float = 10.0) -> None:
        """recluster_kimg: thousands of images between two clusterings."""
        super().__init__(clusters, encoder)
        self.recluster_nimg = recluster_kimg * 1000
        self.done = 0

    def after_step(self, run: Any, dataset: ImageDataset) -> None:
        if run.progress["cur_nimg"] < (self.done + 1) * self.recluster_nimg:
            return
        self.done = int(run.progress["cur_nimg"] // self.recluster_nimg)
        run.D.eval()
        former = self.assignment
        with LatentTable.temporary(run.D.features, dataset, run.device) as table:
            self.assignment = kmeans(table.flat(), self.c_dim, self.seed, init=self._means(table)).assignment
        run.D.train()
        moved = (former != self.assignment).double().mean().item()
        run.collector.report("Clusters/moved", moved)

    def _means(self, table: LatentTable) -> torch.Tensor:
        """Mean of every former cluster [K, D] in the new features; one that is empty gets the overall mean."""
        sums = torch.zeros(self.c_dim, math.prod(table.shape))
        for part in torch.arange(len(table)).split(BLOCK):
            sums.index_add_(0, self.assignment[part], table[part].flatten(1))
        counts = torch.bincount(self.assignment, minlength=self.c_dim)
        means = sums / counts.clamp_min(1)[:, None]
        return torch.where((counts > 0)[:, None], means, sums.sum(0) / len(table))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.done = state["done"]
