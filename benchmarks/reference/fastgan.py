"""FastGAN's generator as Projected GAN uses it (Liu et al. 2021, Sauer et al. 2021), plainly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm

from benchmarks.reference.instance import Encoder, Modulation
from benchmarks.reference.layers import (
    Noise,
    NoiseSource,
    Norm,
    VectorEmbedding,
    glu,
    sn_conv,
    swish,
    unit_second_moment,
)

CHANNELS = {4: 2048, 8: 1024, 16: 512, 32: 256, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}  # at a width of 128
SKIPS = {64: 4, 128: 8, 256: 16, 512: 32}  # gated map: gating map


class Init(nn.Module):
    """z to the map of 4×4 pixels."""

    def __init__(self, z_dim: int, channels: int) -> None:
        super().__init__()
        self.conv = spectral_norm(nn.ConvTranspose2d(z_dim, 2 * channels, 4, bias=False), eps=1e-12)
        self.norm = nn.BatchNorm2d(2 * channels)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """``[N, z_dim]`` to ``[N, channels, 4, 4]``."""
        return glu(self.norm(self.conv(z[:, :, None, None])))


class UpBlock(nn.Module):
    """Nearest ×2; convolution, noise, norm, gated linear unit, twice; the lite form once and without noise."""

    def __init__(self, in_channels: int, out_channels: int, lite: bool, embed_dim: int, h_channels: int) -> None:
        super().__init__()
        self.lite = lite
        self.conv1 = sn_conv(in_channels, 2 * out_channels, 3, padding=1, bias=False)
        self.norm1 = Norm(2 * out_channels, embed_dim, h_channels)
        if lite:
            return
        self.noise1 = Noise()
        self.conv2 = sn_conv(out_channels, 2 * out_channels, 3, padding=1, bias=False)
        if not embed_dim:  # the official conditional block uses its one noise layer twice
            self.noise2 = Noise()
        self.norm2 = Norm(2 * out_channels, embed_dim, h_channels)

    def forward(self, x: torch.Tensor, embed: torch.Tensor | None, h_hat: torch.Tensor | None,
                noise: NoiseSource | None) -> torch.Tensor:
        """``[N, in, H, W]`` to ``[N, out, 2H, 2W]``."""
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        if h_hat is not None and h_hat.shape[2:] != (1, 1):
            h_hat = F.interpolate(h_hat, x.shape[2:], mode="bilinear", align_corners=False)
        x = self.conv1(x)
        if self.lite:
            return glu(self.norm1(x, embed, h_hat))
        x = glu(self.norm1(self.noise1(x, noise), embed, h_hat))
        second = self.noise2 if hasattr(self, "noise2") else self.noise1
        return glu(self.norm2(second(self.conv2(x), noise), embed, h_hat))


class SkipExcitation(nn.Module):
    """Channel gates of a large map from a small one."""

    def __init__(self, small_channels: int, large_channels: int) -> None:
        super().__init__()
        self.conv1 = sn_conv(small_channels, large_channels, 4, bias=False)
        self.conv2 = sn_conv(large_channels, large_channels, 1, bias=False)

    def forward(self, small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
        """``[N, C', h, w]`` and ``[N, C, H, W]`` to the latter's shape."""
        gate = self.conv2(swish(self.conv1(F.adaptive_avg_pool2d(small, 4))))
        return large * torch.sigmoid(gate)


class Generator(nn.Module):
    """FastGAN or FastGAN-lite on nothing, a vector c or a noised representation h.

    The arguments are those of `pg_modules.fastgan.Generator`; `encoder`: f of DIC-GAN, or None.
    """

    def __init__(self, z_dim: int, c_parts: dict[str, int], instance_dim: int, h_channels: int, img_resolution: int,
                 ngf: int, lite: bool, encoder: Encoder | None) -> None:
        super().__init__()
        self.z_dim, self.encoder = z_dim, encoder
        self.modulation = Modulation(z_dim, h_channels) if h_channels else None
        self.embed = VectorEmbedding(c_parts, z_dim, instance_dim) if c_parts else None
        embed_dim = 0 if self.embed is None else self.embed.out_dim
        channels = {side: max(width * ngf // 128, 1) for side, width in CHANNELS.items()}
        sides = [side for side in CHANNELS if 4 < side <= img_resolution]
        self.init = Init(z_dim, channels[4])
        self.blocks = nn.ModuleDict({
            str(side): UpBlock(channels[side // 2], channels[side], lite, embed_dim, h_channels) for side in sides})
        self.skips = nn.ModuleDict({
            str(side): SkipExcitation(channels[SKIPS[side]], channels[side]) for side in sides if side in SKIPS})
        self.to_rgb = sn_conv(channels[img_resolution], 3, 3, padding=1)

    def forward(self, z: torch.Tensor, c: torch.Tensor | None = None, h: torch.Tensor | None = None,
                sigma: float = 0.0, noise: NoiseSource | None = None) -> torch.Tensor:
        """Images ``[N, 3, H, W]`` of ``z [N, z_dim]``, ``c [N, c_dim]``, ``h [N, h_channels, H', W']`` with its σ."""
        embed = None if self.embed is None else self.embed(c)
        h_hat = None if self.modulation is None else self.modulation(h, z, sigma)
        maps = {4: self.init(unit_second_moment(z))}
        for name, block in self.blocks.items():
            side = int(name)
            maps[side] = block(maps[side // 2], embed, h_hat, noise)
            if side in SKIPS:
                maps[side] = self.skips[name](maps[SKIPS[side]], maps[side])
        return self.to_rgb(maps[side])
