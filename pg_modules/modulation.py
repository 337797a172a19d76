"""Noise-scale-aware modulation of the diffused condition (DIC-GAN draft, section 2.1)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from torch_utils.device import as_number


class Modulation(nn.Module):
    """ĥ = (h − σ G_mod(h, z)) / √(1 − σ²) (DIC-GAN, Eq. 6).

    G_mod is a small convolutional network that sees z through a scale and shift of its hidden maps. Its
    last convolution starts at zero and has no spectral norm (the norm of a zero matrix is no number to
    divide by), so training starts at the plain rescaling ĥ = h / √(1 − σ²).
    """

    def __init__(self, z_dim: int, channels: int, hidden: int = 64, kernel_size: int = 3,
                 sigma_input: bool = False) -> None:
        """z_dim: width of z. channels: channels of h. kernel_size: 1 suits vectors (1×1 maps).

        sigma_input: σ differs between samples, so that the network has to be told: G_mod sees it beside z, and ĥ gets
        one more channel that holds it.
        """
        super().__init__()
        pad = kernel_size // 2
        self.sigma_input = sigma_input
        self.out_channels = channels + sigma_input
        self.enter = nn.Conv2d(channels, hidden, kernel_size, padding=pad)
        self.affine = nn.Linear(z_dim + sigma_input, 2 * hidden)
        self.middle = nn.Conv2d(hidden, hidden, kernel_size, padding=pad)
        self.leave = nn.Conv2d(hidden, channels, kernel_size, padding=pad)
        with torch.no_grad():
            for parameter in self.leave.parameters():
                parameter.zero_()

    def forward(self, h: torch.Tensor, z: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        """h [N, C, H, W], z [N, z_dim], sigma in [0, 1) as a number or [N] → ĥ [N, out_channels, H, W].

        At sigma = 0 the result is h itself (beside σ's own channel).
        """
        sigma = as_number(sigma, h).reshape(-1, 1, 1, 1)
        if self.sigma_input:
            z = torch.cat([z, sigma.flatten(1).expand(len(z), 1).to(z.dtype)], dim=1)
        gain, shift = self.affine(z).chunk(2, dim=1)
        hidden = self.enter(h) * (1 + gain[:, :, None, None]) + shift[:, :, None, None]
        noise = self.leave(F.silu(self.middle(F.silu(hidden))))
        h_hat = (h - sigma * noise) / (1 - sigma.square()).sqrt()
        if not self.sigma_input:
            return h_hat
        return torch.cat([h_hat, sigma.expand(len(h), 1, *h.shape[2:]).to(h_hat.dtype)], dim=1)


def modulate_h(modulation: Modulation | None, h: torch.Tensor | None, z: torch.Tensor,
               sigma: float | torch.Tensor | None) -> torch.Tensor | None:
    """ĥ for a generator with or without `Modulation`; ValueError when h is missing or not expected."""
    if modulation is None:
        if h is not None:
            raise ValueError("the generator was built without h_channels and takes no h")
        return None
    if h is None or sigma is None:
        raise ValueError("the generator is conditioned on h and needs h and sigma")
    return modulation(h, z, sigma)
