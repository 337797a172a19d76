"""Distributions of instance latents f that are made of the training images' own, for sampling without references.

``instances`` are images that stand for the whole set (IC-GAN, Casanova et al. 2021, section 4); ``train`` is the set
itself; ``vicinal`` mixes two images (DISP, few-shot); ``gmm`` and ``kmeans`` are fitted to it (DISP, large scale).
Latents are those of the unflipped images. The kinds return f before `Encoder.normalize`, which `Sampler` applies.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dnnlib import UserError
from torch_utils.clustering import Mixture, fit_gmm, kmeans, representatives
from torch_utils.rng import generator, mix_seed
from training.tables import LatentTable

PRIORS = ("train", "vicinal[:ALPHA]", "gmm[:K]", "kmeans[:K]")
ALPHA = 2.0  # of vicinal's Beta distribution; the paper's number is lost
FIT_SEED = 0  # of k-means and of the mixture: the same images give the same prior


def default_components(count: int) -> int:
    """K of ``gmm`` and ``kmeans`` for a set of `count` images: a tenth of it, 1000 at most (DISP's number)."""
    return min(1000, max(count // 10, 1))


@dataclass(frozen=True)
class Spec:
    """What ``--instances`` or ``--prior`` asks for: a kind, and its number (K or ALPHA) or None for the default."""

    kind: str
    number: float | None = None

    def __str__(self) -> str:
        return self.kind if self.number is None else f"{self.kind}:{self.number:g}"

    @property
    def flag(self) -> str:
        """The flag with its value, for messages."""
        return f"--instances {self.number:g}" if self.kind == "instances" else f"--prior {self}"


def parse_instances(text: str) -> Spec | None:
    """``K`` as a `Spec`; None if `text` is no number and so names a file."""
    if not re.fullmatch(r"-?\d{1,9}", text, flags=re.ASCII):
        return None
    if int(text) < 1:
        raise UserError(f"--instances {text}: give the number of instances, 1 or more, or a file of --save-source.")
    return Spec("instances", int(text))


def parse_prior(text: str) -> Spec | None:
    """``train``, ``vicinal[:ALPHA]``, ``gmm[:K]`` or ``kmeans[:K]`` as a `Spec`; None for anything else.

    `UserError` for numbers that the kind can't take.
    """
    kind, colon, number = text.partition(":")
    if kind not in ("train", "vicinal", "gmm", "kmeans"):
        return None
    if not colon:
        return Spec(kind)
    is_count = re.fullmatch(r"[1-9]\d{0,8}", number, flags=re.ASCII)
    is_alpha = re.fullmatch(r"\d{1,6}(\.\d{1,6})?", number, flags=re.ASCII) and float(number) > 0
    if not (is_alpha if kind == "vicinal" else is_count and kind != "train"):
        raise UserError(f"--prior {text}: choose {', '.join(PRIORS)}, with a count K of 1 or more and ALPHA above 0, "
                        "or give a file of --save-source.")
    return Spec(kind, float(number) if kind == "vicinal" else int(number))


def pick(seed: int, count: int) -> int:
    """Which of `count` rows a seed takes: the draw that `Sampler` makes of ``labels``.

    So the class of a sample is that of the image that its f came from.
    """
    return mix_seed(seed, "class") % count


class LatentPrior(abc.ABC):
    """Seeds → latents f [n, C, H, W] on the CPU; row i depends on ``seeds[i]`` alone.

    labels      classes [rows] of images of which whole ones are drawn, else None
    provenance  says where the latents come from (JSON types)
    """

    labels: torch.Tensor | None = None
    provenance: Mapping[str, Any]

    def __init__(self) -> None:
        self.provenance = {}

    @abc.abstractmethod
    def __call__(self, seeds: Sequence[int]) -> torch.Tensor:
        """f of each seed."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The constructor's arguments, for a checkpoint."""


class Rows(LatentPrior):
    """One of the rows [K, C, H, W]: uniformly, or in proportion to `weights` [K]."""

    def __init__(self, rows: torch.Tensor, weights: torch.Tensor | None = None,
                 labels: torch.Tensor | None = None) -> None:
        """labels: int64 [K], classes of the rows where they are images that have one; only without weights."""
        super().__init__()
        assert weights is None or labels is None, "labels go with rows that are images"
        self.rows, self.weights, self.labels = rows, weights, labels

    def __call__(self, seeds: Sequence[int]) -> torch.Tensor:
        return self.rows[[self._pick(seed) for seed in seeds]]

    def _pick(self, seed: int) -> int:
        if self.weights is None:
            return pick(seed, len(self.rows))
        return int(torch.multinomial(self.weights, 1, generator=generator("sample", seed, "prior")))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "weights": self.weights, "labels": self.labels}


class Vicinal(LatentPrior):
    """λ f_i + (1 − λ) f_j with i, j uniform and λ ~ Beta(α, α): the vicinal prior of DISP (Eq. 5)."""

    def __init__(self, rows: torch.Tensor, alpha: float) -> None:
        """rows: f [N, C, H, W]."""
        super().__init__()
        self.rows, self.alpha = rows, alpha

    def __call__(self, seeds: Sequence[int]) -> torch.Tensor:
        return torch.stack([self._mix(seed) for seed in seeds])

    def _mix(self, seed: int) -> torch.Tensor:
        i, j = torch.randint(len(self.rows), (2,), generator=generator("sample", seed, "prior")).tolist()
        # torch draws no Beta variates from a generator; numpy's RandomState is frozen, as z's is.
        share = np.random.RandomState(mix_seed("sample", seed, "beta") % 2**32).beta(self.alpha, self.alpha)
        return share * self.rows[i] + (1 - share) * self.rows[j]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "alpha": self.alpha}


class Gaussians(LatentPrior):
    """A Gaussian mixture with diagonal covariances over the flattened latents (DISP)."""

    def __init__(self, mixture: Mapping[str, torch.Tensor], shape: Sequence[int]) -> None:
        """mixture: `Mixture.state_dict`. shape: (C, H, W) of f."""
        super().__init__()
        self.mixture, self.shape = Mixture.from_state(mixture), tuple(shape)

    def __call__(self, seeds: Sequence[int]) -> torch.Tensor:
        return self.mixture.sample(seeds).reshape(-1, *self.shape)

    def state_dict(self) -> dict[str, Any]:
        return {"mixture": self.mixture.state_dict(), "shape": list(self.shape)}


FORMS: dict[str, type[LatentPrior]] = {form.__name__: form for form in (Rows, Vicinal, Gaussians)}


def fit(spec: Spec, table: LatentTable, labels: torch.Tensor | None) -> LatentPrior:
    """The prior that `spec` asks for, over the latents of the unflipped training images.

    labels: classes [N] of these images or None. Raises `UserError` for more clusters than images.
    """
    number = None if spec.number is None else int(spec.number)
    if spec.kind == "instances":
        assert number is not None
        centroids = kmeans(table.flat(), number, FIT_SEED, flag="--instances").centroids
        chosen = representatives(table.flat(), centroids)
        return Rows(table[chosen], labels=None if labels is None else labels[chosen])
    if spec.kind == "train":
        return Rows(table.everything(), labels=labels)
    if spec.kind == "vicinal":
        return Vicinal(table.everything(), ALPHA if spec.number is None else spec.number)
    count = number or default_components(len(table))
    if spec.kind == "gmm":
        return Gaussians(fit_gmm(table.flat(), count, FIT_SEED).state_dict(), table.shape)
    assert spec.kind == "kmeans", spec.kind
    clusters = kmeans(table.flat(), count, FIT_SEED, flag="--prior kmeans:")
    return Rows(clusters.centroids.reshape(-1, *table.shape), clusters.counts.float())
