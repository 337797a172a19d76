"""Cluster conditioning (Logo-GAN, Sage et al. 2018): the label of an image is its cluster in a feature space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dnnlib import construct
from torch_utils.clustering import kmeans
from torch_utils.device import sent
from torch_utils.rng import generator as keyed
from training.conditioning.base import Batch, Condition, Conditioning, Prepared, one_hot
from training.dataset import ImageDataset
from training.tables import LatentTable


class ClusterLabels(Conditioning):
    """c = one-hot k-means cluster of frozen features; mirror images belong to the cluster of their original."""

    def __init__(self, clusters: int, encoder: Mapping[str, Any]) -> None:
        """clusters: K. encoder: spec of the `pg_modules.encoder.FeatureEncoder` whose features are clustered."""
        super().__init__(clusters)
        self.encoder = dict(encoder)
        self.assignment = torch.empty(0, dtype=torch.int64)
        self.seed = 0

    def prepare(self, data: Prepared) -> None:
        self.seed = data.seed
        if data.resumed:
            return
        encoder = construct(self.encoder)
        with LatentTable.temporary(encoder, data.dataset, data.device) as table:
            self.assignment = kmeans(table.flat(), self.c_dim, self.seed, flag="--clusters").assignment

    def condition(self, batch: Batch, G: Any, generator: torch.Generator) -> Condition:
        labels = self.assignment[batch.indices % len(self.assignment)]
        return Condition(c=one_hot(sent(labels, batch.img.device), self.c_dim))

    def labels_of(self, dataset: ImageDataset) -> list[int] | None:
        return self.assignment.tolist()

    def draw_classes(self, seeds: Sequence[int]) -> list[int] | None:
        """Clusters as often as they occur in the training set."""
        picks = [torch.randint(len(self.assignment), (), generator=keyed("sample", seed, "cluster")) for seed in seeds]
        return self.assignment[torch.stack(picks)].tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"assignment": self.assignment}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.assignment = state["assignment"]
