"""FastGAN generator (Liu et al. 2021), as published and as Projected GAN uses it, on any condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import dnnlib
from dnnlib import UserError
from pg_modules.conditional_norm import ConditionalNorm
from pg_modules.conditions import VectorEmbedding, embed_condition
from pg_modules.layers import (
    NoiseInjection,
    NoiseSource,
    SNConv2d,
    SNConv3x3,
    SNConvTranspose2d,
    SNUpConv2d,
    gated,
    map_like,
    normalize_second_moment,
)
from pg_modules.modulation import Modulation, modulate_h
from pg_modules.resize import averaged

RESOLUTIONS = (32, 64, 128, 256, 512, 1024)

# Channels of each map, in multiples of ngf.
CHANNELS = {4: 16.0, 8: 8.0, 16: 4.0, 32: 2.0, 64: 2.0, 128: 1.0, 256: 0.5, 512: 0.25, 1024: 0.125}

# Map that gates another one through squeeze-excitation: {gated: gating}.
SKIPS = {64: 4, 128: 8, 256: 16, 512: 32}

PerBlock = Sequence[torch.Tensor | None]  # a condition for every up-block


class InitLayer(nn.Module):
    """z to a map of 4×4 pixels times the aspect: SN transposed convolution, batch norm, gated linear unit."""

    def __init__(self, z_dim: int, channels: int, aspect: Sequence[int]) -> None:
        super().__init__()
        self.conv = SNConvTranspose2d(z_dim, channels * 2, (4 * aspect[0], 4 * aspect[1]), bias=False)
        self.norm = nn.BatchNorm2d(channels * 2)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """``[N, z_dim]`` to ``[N, channels, 4·aspect]``."""
        return gated(self.norm(self.conv(z[:, :, None, None])))


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
            self.conv2 = SNConv3x3(out_channels, wide)
            self.noise2 = None if embed_dim else NoiseInjection()
            self.norm2 = ConditionalNorm(wide, embed_dim, h_channels)

    def forward(self, x: torch.Tensor, embed: torch.Tensor | None, h_hat: torch.Tensor | None,
                noise: NoiseSource | None) -> torch.Tensor:
        """``[N, in, H, W]`` to ``[N, out, 2H, 2W]``; `h_hat` of any size is resized to the output."""
        x = self.conv1(x)
        if h_hat is not None:
            h_hat = map_like(h_hat, x)
        if self.lite:
            return self.norm1.gated(x, embed, h_hat)
        x = self.norm1.gated(x, embed, h_hat, self.noise1, noise)
        return self.norm2.gated(self.conv2(x), embed, h_hat, self.noise2 or self.noise1, noise)


class SkipExcitation(nn.Module):
    """Gates the channels of a large map by a small one (FastGAN, section 3.1)."""

    def __init__(self, small_channels: int, large_channels: int) -> None:
        super().__init__()
        self.conv1 = SNConv2d(small_channels, large_channels, 4, bias=False)
        self.conv2 = SNConv2d(large_channels, large_channels, 1, bias=False)

    def forward(self, small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
        """``small [N, C', h, w]``, ``large [N, C, H, W]`` to the shape of `large`."""
        gate = F.silu(self.conv1(averaged(small, (4, 4))))
        return large * self.conv2(gate).sigmoid()


class Generator(nn.Module):
    """FastGAN and FastGAN-lite, 32 to 1024 px, conditioned on nothing, ``c``, ``h`` or both.

    z_dim         width of the noise z
    c_parts       widths of the parts of c by name (`pg_modules.layers.VectorEmbedding`), None or {} for no c
    instance_dim  width of the embedding of an instance feature in c
    h_channels    channels of the noised representation h, 0 for none; then ``h`` and ``sigma`` are needed by `forward`
                  and pass through `Modulation` (DIC-GAN, Eq. 6) into the normalisation of every up-block
    sigma_input   the network is told σ, which differs between samples
    encoder       None, or the nested spec (``class_name`` and options) of the network f that makes latents of images
    img_resolution  short side of the image, a power of two from 32 to 1024
    img_channels  channels of the image
    aspect        height and width in multiples of the short side
    ngf           width multiplier; 128 is official
    lite          one convolution per block, no noise
    original      as published before Projected GAN: weights from N(0, 0.02), tanh, and a second, smaller image (`pair`)
    """

    has_mapping = False

    def __init__(self, z_dim: int = 256, c_parts: Mapping[str, int] | None = None, instance_dim: int = 512,
                 h_channels: int = 0, sigma_input: bool = False, encoder: Mapping[str, Any] | None = None,
                 img_resolution: int = 256, img_channels: int = 3, aspect: Sequence[int] = (1, 1), ngf: int = 128,
                 lite: bool = False, original: bool = False) -> None:
        super().__init__()
        if img_resolution not in RESOLUTIONS:
            raise UserError(f"FastGAN makes images of side {', '.join(map(str, RESOLUTIONS))}, not {img_resolution}; "
                            "convert the data set with dataset_tool.py --resolution.")
        self.z_dim, self.img_resolution, self.img_channels = z_dim, img_resolution, img_channels
        self.c_dim = sum((c_parts or {}).values())
        self.encoder: Any = None if encoder is None else dnnlib.construct(encoder)  # an Encoder, or None
        self.modulation = Modulation(z_dim, h_channels, sigma_input=sigma_input) if h_channels else None
        map_channels = 0 if self.modulation is None else self.modulation.out_channels
        self.embed = VectorEmbedding(c_parts, z_dim, instance_dim) if c_parts else None
        embed_dim = 0 if self.embed is None else self.embed.out_dim

        channels = {side: max(int(factor * ngf), 1) for side, factor in CHANNELS.items() if side <= img_resolution}
        sides = [side for side in channels if side > 4]
        self.init = InitLayer(z_dim, channels[4], aspect)
        self.blocks = nn.ModuleDict({
            str(side): UpBlock(channels[side // 2], channels[side], lite, embed_dim, map_channels) for side in sides})
        self.skips = nn.ModuleDict({
            str(side): SkipExcitation(channels[SKIPS[side]], channels[side]) for side in sides if side in SKIPS})
        self.to_rgb = SNConv2d(channels[img_resolution], img_channels, 3, padding=1)
        self.original = original
        if original:
            self.small_side = min(128, img_resolution // 2)
            self.to_small = SNConv2d(channels[self.small_side], img_channels, 1)
            for module in self.modules():
                if isinstance(module, (SNConv2d, SNConvTranspose2d)):
                    nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, z: torch.Tensor, c: torch.Tensor | None = None, h: torch.Tensor | None = None,
                sigma: float | torch.Tensor | None = None, noise: NoiseSource | None = None) -> torch.Tensor:
        """Images ``[N, img_channels, H, W]``, nominally in [-1, 1] and not clipped, in the type of z.

        ``z [N, z_dim]``, ``c [N, c_dim]`` (None or zero-width where c_dim is 0), ``h [N, h_channels, H', W']`` with its
        noise level `sigma` where the generator takes one. `noise`: source of per-pixel noise; None for none.
        Raises ValueError when a condition is missing or not expected.
        """
        return self.synthesize(z, *self.block_conditions(z, c, h, sigma), noise)

    def pair(self, z: torch.Tensor, c: torch.Tensor | None = None, h: torch.Tensor | None = None,
             sigma: float | torch.Tensor | None = None,
             noise: NoiseSource | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The image of `forward` and a small one, whose short side is `small_side`; of an original FastGAN only."""
        img, small = self._images(z, *self.block_conditions(z, c, h, sigma), noise)
        if small is None:
            raise ValueError("only an original FastGAN makes a second image")
        return img, small

    def block_conditions(self, z: torch.Tensor, c: torch.Tensor | None = None, h: torch.Tensor | None = None,
                         sigma: float | torch.Tensor | None = None) -> tuple[PerBlock, PerBlock]:
        """What `synthesize` takes, equal for all blocks: the embedded c ``[N, embed_dim]`` and ĥ (Eq. 6).

        None for what G isn't conditioned on. Arguments and errors as in `forward`.
        """
        embed, h_hat = embed_condition(self.embed, c), modulate_h(self.modulation, h, z, sigma)
        return [embed] * len(self.blocks), [h_hat] * len(self.blocks)

    def synthesize(self, z: torch.Tensor, embeds: PerBlock, h_hats: PerBlock,
                   noise: NoiseSource | None = None) -> torch.Tensor:
        """The image of `forward` from z and, for every up-block, an embedded c and a ĥ (see `block_conditions`)."""
        return self._images(z, embeds, h_hats, noise)[0]

    def _images(self, z: torch.Tensor, embeds: PerBlock, h_hats: PerBlock,
                noise: NoiseSource | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        x = self.init(normalize_second_moment(z))
        gates, small = {4: x}, None
        for (name, block), embed, h_hat in zip(self.blocks.items(), embeds, h_hats, strict=True):
            side = int(name)
            x = block(x, embed, h_hat, noise)
            if name in self.skips:
                x = self.skips[name](gates.pop(SKIPS[side]), x)
            if side in SKIPS.values():
                gates[side] = x
            if self.original and side == self.small_side:
                small = torch.tanh(self.to_small(x)).to(z.dtype)
        img = self.to_rgb(x).to(z.dtype).contiguous()  # its three channels are few to be neighbours in memory
        return (torch.tanh(img), small) if self.original else (img, None)
