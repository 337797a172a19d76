"""Batch normalisation on a condition, with the gate that follows it in FastGAN's blocks."""

from __future__ import annotations

import torch
from torch import nn

from pg_modules import norm_gate
from pg_modules.batch_norm import BatchNorm2d
from pg_modules.layers import NoiseInjection, NoiseSource, SNConv2d, SNLinear, add_noise, gated

Affine = tuple[torch.Tensor, torch.Tensor]  # gain and bias


class ConditionalNorm(nn.Module):
    """Batch normalisation with gain and bias from a vector, a map, both (their sums) or, without any, learned.

    `embed_dim`: width of the embedded label (0: none), through spectrally normalised linear layers.
    `h_channels`: channels of the map (0: none), through spectrally normalised 1×1 convolutions.
    The gain is 1 + these terms.
    """

    def __init__(self, channels: int, embed_dim: int = 0, h_channels: int = 0) -> None:
        super().__init__()
        self.embed_dim, self.h_channels = embed_dim, h_channels
        self.norm = BatchNorm2d(channels, affine=not (embed_dim or h_channels))
        if embed_dim:
            self.gain = SNLinear(embed_dim, channels)
            self.bias = SNLinear(embed_dim, channels)
        if h_channels:
            self.gain_h = SNConv2d(h_channels, channels, 1)
            self.bias_h = SNConv2d(h_channels, channels, 1)

    def forward(self, x: torch.Tensor, embed: torch.Tensor | None, h: torch.Tensor | None) -> torch.Tensor:
        """``x [N, C, H, W]``; ``embed [N, embed_dim]``; ``h [N, h_channels, H, W]`` or ``[N, h_channels, 1, 1]``."""
        return self._apply_affine(self.norm(x), self._affine(embed, h))

    def gated(self, x: torch.Tensor, embed: torch.Tensor | None, h: torch.Tensor | None,
              noise: NoiseInjection | None = None, source: NoiseSource | None = None) -> torch.Tensor:
        """`gated` of `forward` of x with noise, ``[N, C/2, H, W]``; in two passes over x where there are kernels."""
        drawn = None if noise is None or source is None else source(x.shape[0], x.shape[2], x.shape[3])
        affine = self._affine(embed, h)
        if norm_gate.usable(self.norm, x) and (affine is None or affine[0].shape[2:] == (1, 1)):
            return self.by_kernels(x, affine, drawn, None if drawn is None or noise is None else noise.weight)
        x = x if noise is None else add_noise(x, drawn, noise.weight)
        return gated(self._apply_affine(self.norm(x), affine))

    def by_kernels(self, x: torch.Tensor, affine: Affine | None, drawn: torch.Tensor | None,
                   weight: torch.Tensor | None) -> torch.Tensor:
        """`gated` where `norm_gate` is usable and gain and bias are numbers per sample and channel."""
        gain, bias = (self.norm.weight[None], self.norm.bias[None]) if affine is None else (
            part.flatten(1) for part in affine)
        return norm_gate.norm_gate(self.norm, x, drawn, weight, gain, bias)

    def _affine(self, embed: torch.Tensor | None, h: torch.Tensor | None) -> Affine | None:
        """Gain and bias ``[N, C, H, W]`` or ``[N, C, 1, 1]``; None where they are learned numbers of `norm`."""
        terms = []
        if self.embed_dim:
            assert embed is not None
            terms.append((self.gain(embed)[:, :, None, None], self.bias(embed)[:, :, None, None]))
        if self.h_channels:
            assert h is not None
            terms.append((self.gain_h(h), self.bias_h(h)))
        if not terms:
            return None
        return 1 + sum(gain for gain, _ in terms), sum(bias for _, bias in terms)

    @staticmethod
    def _apply_affine(x: torch.Tensor, affine: Affine | None) -> torch.Tensor:
        return x if affine is None else torch.addcmul(affine[1].to(x.dtype), x, affine[0].to(x.dtype))
