"""The interface of every conditioning method, and the unconditional one, which is also the class-conditional one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from torch_utils.device import sent
from training.dataset import ImageDataset
from training.tables import LatentTable


@dataclass(frozen=True)
class Batch:
    """Real images with what belongs to them.

    img [N, C, H, W] in [-1, 1]; labels [N] int64 of these images, -1 without labels; indices [N] int64: images of
    the data set that the conditions come from (the images themselves unless a method pairs them otherwise, as IC-GAN
    does); draws [N] int64: their places in the endless stream of images. indices and draws stay on the CPU.
    """

    img: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    draws: torch.Tensor


@dataclass(frozen=True)
class Condition:
    """What G and D are told: vector c [N, c_dim], map h [N, C, H, W] with its noise scale (a number or [N]), or None.

    f [N, C, H, W] is the latent in front of the noise, for the information term.
    """

    c: torch.Tensor | None = None
    h: torch.Tensor | None = None
    f: torch.Tensor | None = None
    sigma: float | torch.Tensor = 0.0

    def detach(self) -> Condition:
        """The stop-gradient of Eq. 5: D and its loss see the condition as a constant."""
        c, h, f = (None if x is None else x.detach() for x in (self.c, self.h, self.f))
        return Condition(c, h, f, self.sigma)


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor | None:
    """labels [N] → [N, classes] float; None if there are no classes."""
    return F.one_hot(labels, classes).float() if classes else None


def join(*parts: torch.Tensor | None) -> torch.Tensor | None:
    """The condition vector c from its parts [N, width], None where there are none."""
    given = [part for part in parts if part is not None]
    return torch.cat(given, dim=1) if given else None


@dataclass
class Prepared:
    """What a method may learn from before training.

    dataset with its images; f: latents of all images, flips included, where f never changes, else None;
    sample [M, C, H, W]: latents of a fixed subset without flips, where there is an f; seed of the run;
    resumed: the method's own state has been restored, so that what it keeps there isn't to be chosen anew.
    """

    dataset: ImageDataset
    f: LatentTable | None
    sample: torch.Tensor | None
    seed: int
    resumed: bool
    device: torch.device


class Conditioning:
    """Base of all methods; by itself it is the unconditional or, with labels, the class-conditional one.

    uses_latents  G's encoder f is needed: conditions come from latents f of images
    draws_fakes   conditions of fakes are drawn independently of those of reals
    """

    uses_latents = False
    draws_fakes = False

    def __init__(self, c_dim: int = 0) -> None:
        """c_dim: number of classes; 0 = labels aren't used."""
        self.c_dim = c_dim
        # Latents of the whole data set where they never change (frozen f); else they are computed.
        self.table: LatentTable | None = None

    # Before and during training.

    def prepare(self, data: Prepared) -> None:
        """Once at the start of a run and of every continuation."""
        self.table = data.f

    def pair(self, indices: Sequence[int], draws: Sequence[int]) -> list[int]:
        """Which real image goes with the condition of each image of `indices`; `draws`: places in the stream."""
        return list(indices)

    def condition(self, batch: Batch, G: Any, generator: torch.Generator) -> Condition:
        """Conditions whose matching real images are those of `batch`. Builds a graph if gradients are on."""
        return Condition(c=one_hot(batch.labels, self.c_dim))

    def fake_condition(self, batch: Batch, G: Any, generator: torch.Generator) -> Condition:
        """Conditions for fakes, as many as `batch` has images."""
        return self.condition(batch, G, generator)

    def latents(self, batch: Batch, G: Any) -> torch.Tensor:
        """f of the images that the conditions come from."""
        return G.encoder(batch.img) if self.table is None else sent(self.table[batch.indices], batch.img.device)

    def after_step(self, run: Any, dataset: ImageDataset) -> None:
        """After every iteration; methods that follow the networks (Self-Conditioned GAN) renew themselves here."""

    # Sampling.

    @property
    def classes(self) -> int:
        """Classes that ``--class`` may name; 0 = none."""
        return self.c_dim

    def labels_of(self, dataset: ImageDataset) -> list[int] | None:
        """The class of every training image (flips not counted), None without classes."""
        return None if dataset.labels is None or not self.c_dim else dataset.labels.tolist()

    def draw_classes(self, seeds: Sequence[int]) -> list[int] | None:
        """A class per seed where the method knows how often each occurs; None = the user has to say."""
        return None

    def told(self, f: torch.Tensor | None, labels: torch.Tensor | None, sigma: float | None,
             eps: torch.Tensor | None) -> Condition:
        """What a trained G is told for latents f [N, C, H, W], labels [N] and standard normal eps like f.

        sigma: None = as trained.
        """
        return Condition(c=None if labels is None else one_hot(labels, self.c_dim))

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Plain data that belongs into a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        assert not state, "this conditioning has no state"
