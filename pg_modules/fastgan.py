"""FastGAN generator (Liu et al. 2021) as Projected GAN uses it, with labels and instance latents as conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import dnnlib
from dnnlib import UserError
from pg_modules.layers import (
    ConditionalNorm,
    Embedding,
    NoiseInjection,
    NoiseSource,
    SNConv2d,
    SNConvTranspose2d,
    SNUpConv2d,
    normalize_second_moment,
    resize_map,
)
from pg_modules.modulation import Modulation

RESOLUTIONS = (32, 64, 128, 256, 512, 1024)

# Channels of each map, in multiples of ngf.
CHANNELS = {4: 16.0, 8: 8.0, 16: 4.0, 32: 2.0, 64: 2.0, 128: 1.0, 256: 0.5, 512: 0.25, 1024: 0.125}

# Map that gates another one through squeeze-excitation: {gated: gating}.
SKIPS = {64: 4, 128: 8, 256: 16, 512: 32}


class InitLayer(nn.Module):
    """z to a 4×4 map: spectrally normalised transposed convolution, batch norm, gated linear unit."""

    def __init__(self, z_dim: int, channels: int) -> None:
        super().__init__()
        self.conv = SNConvTranspose2d(z_dim, channels * 2, 4, bias=False)
        self.norm = nn.BatchNorm2d(channels * 2)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """``[N, z_dim]`` to ``[N, channels, 4, 4]``."""
        return F.glu(self.norm(self.conv(z[:, :, None, None])), dim=1)


class UpBlock(nn.Module):
    """Doubles the side of a map.

    Full: nearest ×2, then twice 3×3 convolution, noise, norm, gated linear unit. Lite: once, without noise.
    The conditional full block has one noise weight for both places, as the official one.
    """

    def __init__(self, in_channels: int, out_channels: int, lite: bool, embed_dim: int, h_channels: int) -> None:
        super().__init__()
        wide = out_channels * 2
        self.lite = lite
        self.conv1 = SNUpConv2d(in_channels, wide)
        self.norm1 = ConditionalNorm(wide, embed_dim, h_channels)
        if not lite:
            self.noise1 = NoiseInjection()
            self.conv2 = SNConv2d(out_channels, wide, 3, padding=1, bias=False)
            self.noise2 = None if embed_dim else NoiseInjection()
            self.norm2 = ConditionalNorm(wide, embed_dim, h_channels)

    def forward(self, x: torch.Tensor, embed: torch.Tensor | None, h_hat: torch.Tensor | None,
                noise: NoiseSource | None) -> torch.Tensor:
        """``[N, in, H, W]`` to ``[N, out, 2H, 2W]``; `h_hat` of any size is resized to the output."""
        if h_hat is not None:
            h_hat = resize_map(h_hat, (2 * x.shape[2], 2 * x.shape[3]))
        x = self.conv1(x)
        if self.lite:
            return F.glu(self.norm1(x, embed, h_hat), dim=1)
        x = F.glu(self.norm1(self.noise1(x, noise), embed, h_hat), dim=1)
        x = (self.noise2 or self.noise1)(self.conv2(x), noise)
        return F.glu(self.norm2(x, embed, h_hat), dim=1)


class SkipExcitation(nn.Module):
    """Gates the channels of a large map by a small one (FastGAN, section 3.1)."""

    def __init__(self, small_channels: int, large_channels: int) -> None:
        super().__init__()
        self.conv1 = SNConv2d(small_channels, large_channels, 4, bias=False)
        self.conv2 = SNConv2d(large_channels, large_channels, 1, bias=False)

    def forward(self, small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
        """``small [N, C', h, w]``, ``large [N, C, H, W]`` to the shape of `large`."""
        gate = F.silu(self.conv1(F.adaptive_avg_pool2d(small, 4)))
        return large * self.conv2(gate).sigmoid()


class Generator(nn.Module):
    """FastGAN and FastGAN-lite, 32 to 1024 px, conditioned on nothing, ``c``, ``h`` or both.

    z_dim         width of the noise z
    c_dim         width of the condition vector, 0 for none
    img_resolution  side of the image, a power of two from 32 to 1024
    img_channels  channels of the image
    ngf           width multiplier; 128 is official
    lite          one convolution per block, no noise
    encoder       None, or the nested spec (``class_name`` and options) of the network f that makes ``f`` and has
                  ``latent_shape`` (C, H, W); then ``h`` and ``sigma`` are needed by `forward` and pass through
                  `Modulation` (DIC-GAN, Eq. 6) into the normalisation of every up-block
    """

    def __init__(self, z_dim: int = 256, c_dim: int = 0, img_resolution: int = 256, img_channels: int = 3,
                 ngf: int = 128, lite: bool = False, encoder: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if img_resolution not in RESOLUTIONS:
            raise UserError(f"FastGAN makes images of side {', '.join(map(str, RESOLUTIONS))}, not {img_resolution}; "
                            "convert the data set with dataset_tool.py --resolution.")
        self.z_dim, self.c_dim = z_dim, c_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.encoder: Any = None if encoder is None else dnnlib.construct(encoder)  # an Encoder, or None
        h_channels = 0 if self.encoder is None else int(self.encoder.latent_shape[0])
        self.modulation = Modulation(z_dim, h_channels) if self.encoder is not None else None
        self.embed = Embedding(c_dim, z_dim) if c_dim else None
        embed_dim = z_dim if c_dim else 0

        channels = {side: max(int(factor * ngf), 1) for side, factor in CHANNELS.items() if side <= img_resolution}
        sides = [side for side in channels if side > 4]
        self.init = InitLayer(z_dim, channels[4])
        self.blocks = nn.ModuleDict({
            str(side): UpBlock(channels[side // 2], channels[side], lite, embed_dim, h_channels) for side in sides})
        self.skips = nn.ModuleDict({
            str(side): SkipExcitation(channels[SKIPS[side]], channels[side]) for side in sides if side in SKIPS})
        self.to_rgb = SNConv2d(channels[img_resolution], img_channels, 3, padding=1)

    def forward(self, z: torch.Tensor, c: torch.Tensor | None = None, h: torch.Tensor | None = None,
                sigma: float | torch.Tensor | None = None, noise: NoiseSource | None = None) -> torch.Tensor:
        """Images ``[N, img_channels, R, R]``, nominally in [-1, 1] and not clipped, in the type of z.

        ``z [N, z_dim]``, ``c [N, c_dim]`` (None or zero-width where c_dim is 0), ``h [N, C, H, W]`` with its noise
        level `sigma` where the generator has an encoder. `noise`: source of per-pixel noise; None for none.
        Raises ValueError when a condition is missing or not expected.
        """
        embed = self._embed(c)
        h_hat = self._modulate(h, z, sigma)
        x = self.init(normalize_second_moment(z))
        gates = {4: x}
        for name, block in self.blocks.items():
            side = int(name)
            x = block(x, embed, h_hat, noise)
            if name in self.skips:
                x = self.skips[name](gates.pop(SKIPS[side]), x)
            if side in SKIPS.values():
                gates[side] = x
        return self.to_rgb(x).to(z.dtype)

    def _embed(self, c: torch.Tensor | None) -> torch.Tensor | None:
        width = 0 if c is None else c.shape[1]
        if width != self.c_dim:
            raise ValueError(f"the generator takes a condition vector of width {self.c_dim}, not {width}")
        return None if self.embed is None else self.embed(c)

    def _modulate(self, h: torch.Tensor | None, z: torch.Tensor,
                  sigma: float | torch.Tensor | None) -> torch.Tensor | None:
        if self.modulation is None:
            if h is not None:
                raise ValueError("the generator was built without an encoder and takes no h")
            return None
        if h is None or sigma is None:
            raise ValueError("the generator is conditioned on h and needs h and sigma")
        return self.modulation(h, z, sigma)
