"""Whitening of features: moments of a data set, running statistics, and the normalisation of one sample."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from torch_utils import exchange
from torch_utils.eigen import eigh


def rms_normalize(f: torch.Tensor) -> torch.Tensor:
    """Divides each sample of f [N, C, H, W] by its root mean square over C, H, W."""
    return f * (f.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()


def inverse_sqrt(covariance: torch.Tensor, floor: float = 1e-3) -> torch.Tensor:
    """Symmetric inverse square root of [C, C]; eigenvalues are raised to `floor` × their mean."""
    values, vectors = eigh(covariance)
    values = values.clamp_min(floor * values.mean().clamp_min(1e-12))
    return ((vectors * values.rsqrt()) @ vectors.T).to(covariance)


class Whitening(nn.Module):
    """Removes mean and covariance of the channels of [N, C, H, W] by running statistics.

    The statistics follow the batches of forward passes that build a graph (the generator's steps), of all processes
    together; no gradient flows through them.
    """

    mean: torch.Tensor
    covariance: torch.Tensor

    def __init__(self, channels: int, momentum: float = 0.02) -> None:
        """momentum: weight of the newest batch in the running statistics."""
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("covariance", torch.eye(channels))

    @torch.no_grad()
    def observe(self, x: torch.Tensor, momentum: float) -> None:
        """Moves the statistics towards those of x by `momentum`; 1 replaces them."""
        rows = x.to(self.mean.dtype).movedim(1, -1).flatten(0, -2)
        centred = rows - rows.mean(0)
        self.mean.lerp_(rows.mean(0), momentum)
        self.covariance.lerp_(centred.T @ centred / max(len(rows) - 1, 1), momentum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):  # statistics need all of float32
            if self.training and torch.is_grad_enabled():
                self.observe(exchange.gather_rows(x), self.momentum)
            weight = inverse_sqrt(self.covariance)
            return F.conv2d(x.to(self.mean.dtype) - self.mean[:, None, None], weight[:, :, None, None])


def moments(batches: Iterable[torch.Tensor]) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Number, mean [D] and covariance [D, D] in float64 and on the CPU of rows [n, D], a batch in memory at a time."""
    count, shift, total, outer = 0, None, torch.zeros(()), torch.zeros(())
    for batch in batches:
        rows = batch.cpu().double()  # MPS has no float64
        if shift is None:
            shift = rows.mean(0)  # near the mean, so that little cancels in the end
            total, outer = torch.zeros_like(shift), torch.zeros(len(shift), len(shift)).to(shift)
        rows = rows - shift
        count, total, outer = count + len(rows), total + rows.sum(0), outer + rows.T @ rows
    assert shift is not None, "no images"
    mean = total / count
    return count, mean + shift, (outer - count * mean.outer(mean)) / max(count - 1, 1)
