"""Whitening of latents by stored statistics, and back.

A diffusion model starts from a unit normal; latents that already have mean 0 and unit covariance leave it only
what is not Gaussian to learn.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dnnlib import UserError
from torch_utils.eigen import eigh

FULL_LIMIT = 1024  # values per latent map up to which `auto` takes the full covariance
VECTOR_LIMIT = 2048  # and per latent vector
EIGENVALUE_FLOOR = 1e-4


@dataclass(frozen=True)
class Whitening:
    """The affine map f -> matrix (f - mean) and its inverse.

    kind       ``full``: over all K = C*H*W values of a latent; ``channel``: over its K = C channels, each
               position in space being one sample; ``diagonal``: every one of the K = C*H*W values by itself;
               ``scalar``: the same, with one scale for all
    mean       ``[K]``
    matrix     ``[K, K]``, symmetric (ZCA): values and channels keep their place; ``[K]`` where it is diagonal
    inverse    like matrix
    shrinkage  share of every off-diagonal covariance that was taken for noise, 0 to 1
    """

    kind: str
    mean: torch.Tensor
    matrix: torch.Tensor
    inverse: torch.Tensor
    shrinkage: float

    def apply(self, f: torch.Tensor) -> torch.Tensor:
        """Whitened latents, ``[N, C, H, W]`` as `f`."""
        return self._transform(f, self.matrix, -_times(self.matrix, self.mean[:, None])[:, 0])

    def invert(self, w: torch.Tensor) -> torch.Tensor:
        """Latents ``[N, C, H, W]`` from whitened ones."""
        return self._transform(w, self.inverse, self.mean)

    def _transform(self, x: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(2) if self.kind == "channel" else x.flatten(1).unsqueeze(2)  # [N, K, positions]
        return (_times(matrix.to(x), rows) + offset.to(x).unsqueeze(1)).reshape(x.shape)

    @property
    def largest_spread(self) -> float:
        """The largest standard deviation that white noise of deviation 1 gets in any direction when brought back."""
        return float(self._spreads[0].max())

    def colour(self, noise: torch.Tensor, total: float, share: float) -> torch.Tensor:
        """The noise that is missing until white noise of deviation `share`, brought back, is white again.

        noise: standard normal ``[N, C, H, W]``, independent of the other. The sum of both has deviation `total` in
        every direction. Needs ``share * largest_spread <= total``.
        """
        spreads, vectors = self._spreads
        missing = (total**2 - (share * spreads).square()).clamp(min=0).sqrt()
        matrix = missing if vectors is None else vectors * missing @ vectors.T
        return self._transform(noise, matrix, torch.zeros_like(self.mean))

    @functools.cached_property
    def _spreads(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Deviations ``[K]`` of f along the columns of an orthogonal matrix, None for the unit matrix; float64, CPU."""
        inverse = self.inverse.cpu().double()
        return (inverse, None) if inverse.ndim == 1 else eigh(inverse)

    def to(self, device: torch.device | str) -> Whitening:
        """The same map with its tensors on `device`."""
        return Whitening(self.kind, self.mean.to(device), self.matrix.to(device), self.inverse.to(device),
                         self.shrinkage)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"kind": self.kind, "mean": self.mean, "matrix": self.matrix, "inverse": self.inverse,
                "shrinkage": self.shrinkage}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Whitening:
        """Inverse of `state_dict`."""
        return Whitening(**state)


def _times(matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """matrix ``[K, K]``, or its diagonal ``[K]``, times rows ``[..., K, positions]``."""
    return matrix[:, None] * rows if matrix.ndim == 1 else torch.matmul(matrix, rows)


def choose_kind(kind: str, shape: Sequence[int]) -> str:
    """What ``auto`` means for latents (C, H, W): the fullest that is not too large; others stay."""
    if kind != "auto":
        return kind
    is_vector, size = tuple(shape[1:]) == (1, 1), math.prod(shape)
    if size <= (VECTOR_LIMIT if is_vector else FULL_LIMIT):
        return "full"
    return "diagonal" if is_vector else "channel"


def fit(latents: torch.Tensor, num_images: int, kind: str = "auto") -> Whitening:
    """Statistics of `latents` ``[M, C, H, W]``, which come from `num_images` independent images.

    ``auto``: see `choose_kind`. Correlations are shrunk by what their own sampling error explains (`shrinkage_of`),
    because a covariance of few samples has directions that are much too narrow, and whitening would blow held-out
    latents up along them. Eigenvalues below `EIGENVALUE_FLOOR` of their mean are raised to it. Raises `UserError` when
    the latents don't vary at all.
    """
    kind = choose_kind(kind, latents.shape[1:])
    rows = latents.movedim(1, -1).flatten(0, -2) if kind == "channel" else latents.flatten(1)
    rows = rows.double()
    mean = rows.mean(0)
    centred = rows - mean
    variance = centred.square().mean(0)
    if not bool(torch.isfinite(variance).all()):
        raise UserError("The encoder gives latents that are not finite; use another --network.")
    if float(variance.mean()) <= 1e-12 * float(rows.square().mean()):
        raise UserError("The encoder gives every image the same latent (it has collapsed): there is nothing to learn. "
                        "Use a --network whose encoder keeps its information.")
    if kind in ("diagonal", "scalar"):
        values = variance if kind == "diagonal" else variance.mean().expand_as(variance)
        values = values.clamp(min=EIGENVALUE_FLOOR * float(values.mean()))
        return Whitening(kind, mean.float(), values.rsqrt().float(), values.sqrt().float(), shrinkage=1.0)
    covariance = centred.T @ centred / len(rows)
    shrinkage = shrinkage_of(centred, covariance, num_images)
    covariance = (1 - shrinkage) * covariance + shrinkage * torch.diag(variance)
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=EIGENVALUE_FLOOR * float(values.mean()))
    return Whitening(
        kind=kind,
        mean=mean.float(),
        matrix=(vectors * values.rsqrt() @ vectors.T).float(),
        inverse=(vectors * values.sqrt() @ vectors.T).float(),
        shrinkage=shrinkage,
    )


def shrinkage_of(centred: torch.Tensor, covariance: torch.Tensor, num_images: int) -> float:
    """Weight of the diagonal target for a sample covariance (Schäfer and Strimmer 2005, target D).

    The summed variance of the off-diagonal correlations over their summed squares, within [0, 1].
    `centred` ``[M, K]``, `covariance` ``[K, K]``; flips and positions are not independent, so that the sampling
    variance counts `num_images` samples.
    """
    if covariance.shape[0] == 1:
        return 0.0
    std = covariance.diagonal().sqrt()
    std = std.clamp(min=1e-3 * float(std.max()))
    unit = centred / std
    correlation = covariance / (std[:, None] * std[None, :])
    products = unit.square().T @ unit.square() / len(unit)
    off = ~torch.eye(len(std), dtype=torch.bool, device=std.device)
    noise = ((products - correlation.square()) / max(num_images - 1, 1))[off].clamp(min=0).sum()
    signal = correlation.square()[off].sum()
    return float((noise / signal.clamp(min=1e-12)).clamp(max=1.0))
