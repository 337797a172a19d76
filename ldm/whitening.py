"""Whitening of latents by stored statistics, and back.

A diffusion model starts from a unit normal; latents that already have mean 0 and unit covariance leave it only
what is not Gaussian to learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dnnlib import UserError

KINDS = ("auto", "full", "channel")
FULL_LIMIT = 1024
EIGENVALUE_FLOOR = 1e-4


@dataclass(frozen=True)
class Whitening:
    """The affine map f -> matrix (f - mean) and its inverse.

    kind       ``full``: over all K = C*H*W values of a latent; ``channel``: over its K = C channels, each
               position in space being one sample
    mean       ``[K]``
    matrix     ``[K, K]``, symmetric (ZCA): values and channels keep their place
    inverse    ``[K, K]``
    shrinkage  share of every off-diagonal covariance that was taken for noise, 0 to 1
    """

    kind: str
    mean: torch.Tensor
    matrix: torch.Tensor
    inverse: torch.Tensor
    shrinkage: float

    def apply(self, f: torch.Tensor) -> torch.Tensor:
        """Whitened latents, ``[N, C, H, W]`` as `f`."""
        return self._transform(f, self.matrix, -(self.matrix @ self.mean))

    def invert(self, w: torch.Tensor) -> torch.Tensor:
        """Latents ``[N, C, H, W]`` from whitened ones."""
        return self._transform(w, self.inverse, self.mean)

    def _transform(self, x: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(1).unsqueeze(2) if self.kind == "full" else x.flatten(2)  # [N, K, positions]
        out = torch.matmul(matrix.to(x), rows) + offset.to(x).unsqueeze(1)
        return out.reshape(x.shape)

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


def fit(latents: torch.Tensor, num_images: int, kind: str = "auto") -> Whitening:
    """Statistics of `latents` ``[M, C, H, W]``, which come from `num_images` independent images.

    ``auto`` is ``full`` up to `FULL_LIMIT` values per latent, else ``channel``. Correlations are shrunk by what
    their own sampling error explains (`shrinkage_of`), because a covariance of few samples has directions that
    are much too narrow, and whitening would blow held-out latents up along them. Eigenvalues below
    `EIGENVALUE_FLOOR` of their mean are raised to it. Raises `UserError` when the latents don't vary at all.
    """
    size = latents[0].numel()
    kind = ("full" if size <= FULL_LIMIT else "channel") if kind == "auto" else kind
    rows = latents.flatten(1) if kind == "full" else latents.movedim(1, -1).flatten(0, -2)
    rows = rows.double()
    mean = rows.mean(0)
    centred = rows - mean
    covariance = centred.T @ centred / len(rows)
    variance = covariance.diagonal().clone()
    if not bool(torch.isfinite(variance).all()):
        raise UserError("The encoder gives latents that are not finite; use another --network.")
    if float(variance.mean()) <= 1e-12 * float(rows.square().mean()):
        raise UserError("The encoder gives every image the same latent (it has collapsed): there is nothing to learn. "
                        "Use a --network whose encoder keeps its information.")
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
