"""Noise-scale-aware modulation of the diffused condition (DIC-GAN draft, section 2.1)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Modulation(nn.Module):
    """ĥ = (h − σ G_mod(h, z)) / √(1 − σ²) (DIC-GAN, Eq. 6).

    G_mod is a small convolutional network that sees z through a scale and shift of its hidden maps. Its
    last convolution starts at zero and has no spectral norm (the norm of a zero matrix is no number to
    divide by), so training starts at the plain rescaling ĥ = h / √(1 − σ²).
    """

    def __init__(self, z_dim: int, channels: int, hidden: int = 64, kernel_size: int = 3) -> None:
        """z_dim: width of z. channels: channels of h. kernel_size: 1 suits vectors (1×1 maps)."""
        super().__init__()
        pad = kernel_size // 2
        self.enter = nn.Conv2d(channels, hidden, kernel_size, padding=pad)
        self.affine = nn.Linear(z_dim, 2 * hidden)
        self.middle = nn.Conv2d(hidden, hidden, kernel_size, padding=pad)
        self.leave = nn.Conv2d(hidden, channels, kernel_size, padding=pad)
        with torch.no_grad():
            for parameter in self.leave.parameters():
                parameter.zero_()

    def forward(self, h: torch.Tensor, z: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        """h [N, C, H, W], z [N, z_dim], sigma in [0, 1) as a number or [N] → ĥ [N, C, H, W].

        At sigma = 0 the result is h itself.
        """
        sigma = torch.as_tensor(sigma, dtype=h.dtype, device=h.device).reshape(-1, 1, 1, 1)
        gain, shift = self.affine(z).chunk(2, dim=1)
        hidden = self.enter(h) * (1 + gain[:, :, None, None]) + shift[:, :, None, None]
        noise = self.leave(F.silu(self.middle(F.silu(hidden))))
        return (h - sigma * noise) / (1 - sigma.square()).sqrt()
