"""The interface of every conditioning method, and the unconditional one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from pg_modules.fastgan import Generator


@dataclass(frozen=True)
class Batch:
    """Real images with what belongs to them.

    img [N, 3, R, R] in [-1, 1]; labels [N] int64, -1 without labels; indices [N] int64 into the data set.
    """

    img: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class Condition:
    """What G and D are told: vector c [N, c_dim], map h [N, C, H, W] with its noise scale, or None.

    f [N, C, H, W] is the latent in front of the noise, for the information term.
    """

    c: torch.Tensor | None = None
    h: torch.Tensor | None = None
    f: torch.Tensor | None = None
    sigma: float = 0.0

    def detach(self) -> Condition:
        """The stop-gradient of Eq. 5: D and its loss see h as a constant."""
        return Condition(
            c=self.c,
            h=None if self.h is None else self.h.detach(),
            f=None if self.f is None else self.f.detach(),
            sigma=self.sigma,
        )


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor | None:
    """labels [N] → [N, classes] float; None if there are no classes."""
    return F.one_hot(labels, classes).float() if classes else None


class Conditioning:
    """Base of all methods; by itself it is the unconditional or, with labels, the class-conditional one."""

    uses_latents = False

    def __init__(self, c_dim: int = 0) -> None:
        """c_dim: number of classes; 0 = labels aren't used."""
        self.c_dim = c_dim
        # Latents of the whole data set where they never change (frozen f); else they are computed.
        self.table: torch.Tensor | None = None

    def prepare(self, latents: torch.Tensor | None, seed: int) -> None:
        """Once before training, with the latents [M, C, H, W] of a subset if the method uses them."""

    def condition(self, batch: Batch, G: Generator, generator: torch.Generator) -> Condition:
        """Conditions whose matching real images are those of `batch`. Builds a graph if gradients are on."""
        return Condition(c=one_hot(batch.labels, self.c_dim))

    def state_dict(self) -> dict:
        """Plain data that belongs into a checkpoint."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Takes over what `state_dict` returned."""
        assert not state, "this conditioning has no state"
