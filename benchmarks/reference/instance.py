"""DIC-GAN's own parts (draft, section 2): f, the diffused instance h, and its way into the generator; plainly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference.backbone import Backbone
from benchmarks.reference.layers import swish


def diffuse(f: torch.Tensor, sigma: float, eps: torch.Tensor) -> torch.Tensor:
    """h = √(1 − σ²) f + σ ε (Eq. 1–2)."""
    return (1 - sigma**2) ** 0.5 * f + sigma * eps


class Encoder(nn.Module):
    """The frozen f: principal components of pooled features, whitened, with a root mean square of 1 per image."""

    mean: torch.Tensor
    projection: torch.Tensor

    def __init__(self, backbone: Backbone, dims: int, input_size: int) -> None:
        """dims: of f. input_size: side that images are resized to. Mean and axes are to be filled in."""
        super().__init__()
        self.frozen, self.input_size = (backbone,), input_size  # a tuple: the weights are no part of the state
        self.register_buffer("mean", torch.zeros(backbone.pooled_dim))
        self.register_buffer("projection", torch.randn(dims, backbone.pooled_dim))

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        """``[N, 3, H, W]`` in [-1, 1] to ``[N, dims, 1, 1]``."""
        if img.shape[2] != self.input_size:
            img = F.interpolate(img, self.input_size, mode="bilinear", antialias=True)
        f = F.linear(self.frozen[0].pooled(img) - self.mean, self.projection)
        return (f / torch.sqrt(f.square().mean(dim=1, keepdim=True) + 1e-8))[:, :, None, None]


class Modulation(nn.Module):
    """ĥ = (h − σ G_mod(h, z)) / √(1 − σ²) (Eq. 6), G_mod being three convolutions that z scales and shifts."""

    def __init__(self, z_dim: int, channels: int, hidden: int = 64) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, hidden, 3, padding=1)
        self.affine = nn.Linear(z_dim, 2 * hidden)
        self.middle = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.leave = nn.Conv2d(hidden, channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, h: torch.Tensor, z: torch.Tensor, sigma: float) -> torch.Tensor:
        """``h [N, C, H, W]``, ``z [N, z_dim]`` to ĥ like h."""
        gain, shift = self.affine(z)[:, :, None, None].chunk(2, dim=1)
        x = swish(self.enter(h) * (1 + gain) + shift)
        return (h - sigma * self.leave(swish(self.middle(x)))) / (1 - sigma**2) ** 0.5
