"""StyleGAN2 generator (Karras et al. 2020) as Projected GAN uses it, conditioned on vectors, maps or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

import dnnlib
from dnnlib import UserError
from pg_modules.conditions import split_parts
from pg_modules.fastgan import RESOLUTIONS
from pg_modules.layers import NoiseInjection, NoiseSource, map_like, normalize_second_moment
from pg_modules.modulation import Modulation, modulate_h
from pg_modules.styled_activation import styled_activation
from pg_modules.stylegan2_ops import Dense, EqualConv, bias_act, demodulation, fir_filter, modulated_conv, upfirdn2d
from torch_utils import exchange

MAP_LR_MULTIPLIER = 0.01
W_AVG_BETA = 0.998
# Bound of every map and of each contribution to the image, which keeps 16-bit training from running away.
CONV_CLAMP = 256.0

# Where the noise maps come from: a source, those stored in the network, or none.
Noise = NoiseSource | Literal["const"] | None


class MappingNetwork(nn.Module):
    """z and c to w: normalised z and normalised embeddings of c's parts, concatenated, through `layers` dense ones.

    ``w_avg [w_dim]`` follows the mean of w over passes of all processes in training mode.
    """

    w_avg: torch.Tensor

    def __init__(self, z_dim: int, w_dim: int, c_parts: Mapping[str, int], layers: int) -> None:
        super().__init__()
        self.c_parts = dict(c_parts)
        self.embeds = nn.ModuleDict({name: Dense(width, w_dim) for name, width in c_parts.items()})
        widths = [z_dim + len(c_parts) * w_dim] + [w_dim] * layers
        self.layers = nn.ModuleList(
            Dense(widths[i], widths[i + 1], "lrelu", MAP_LR_MULTIPLIER) for i in range(layers))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        """``z [N, z_dim]``, ``c [N, c_dim]`` or None to ``w [N, w_dim]``; ValueError for another width of c."""
        parts = split_parts(c, self.c_parts)
        w = torch.cat([normalize_second_moment(z), *(
            normalize_second_moment(self.embeds[name](part)) for name, part in parts.items())], dim=1)
        for layer in self.layers:
            w = layer(w)
        if self.training:
            with torch.no_grad():
                self.w_avg.copy_(exchange.mean(w.mean(dim=0)).lerp(self.w_avg, W_AVG_BETA))
        return w


class SynthesisLayer(nn.Module):
    """Modulated 3×3 convolution, noise, leaky ReLU; `up`: after an enlargement ×2. `size`: of its output."""

    fir: torch.Tensor
    noise_const: torch.Tensor

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, size: tuple[int, int], up: bool) -> None:
        super().__init__()
        self.up = up
        self.affine = Dense(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise = NoiseInjection()
        self.register_buffer("noise_const", torch.randn(size))
        if up:
            self.register_buffer("fir", fir_filter(), persistent=False)

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: Noise) -> torch.Tensor:
        """``x [N, in, H, W]``, ``w [N, w_dim]`` to ``[N, out, *size]``."""
        styles = self.affine(w)
        x = modulated_conv(x, self.weight, styles, self.fir if self.up else None)
        if noise is None or isinstance(noise, str):
            drawn = None if noise is None else self.noise_const
        else:
            drawn = noise(len(x), x.shape[2], x.shape[3])
        return styled_activation(x, demodulation(self.weight, styles), drawn, self.noise.weight, self.bias, CONV_CLAMP)


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to an image, without demodulation."""

    def __init__(self, in_channels: int, img_channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = Dense(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(img_channels))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """``x [N, in, H, W]``, ``w [N, w_dim]`` to ``[N, img_channels, H, W]``."""
        styles = self.affine(w) / x.shape[1] ** 0.5
        return bias_act(modulated_conv(x, self.weight, styles), self.bias, clamp=CONV_CLAMP)


class ScaleShift(nn.Module):
    """(1 + gain) · x + shift, both from ĥ by 1×1 convolutions whose weights start at a tenth of the usual.

    With ordinary weights a fresh network would follow ĥ more than w; with zeros ĥ had no gradient at first.
    """

    def __init__(self, h_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = EqualConv(h_channels, 2 * channels, 1)
        with torch.no_grad():
            self.conv.weight.mul_(0.1)

    def forward(self, x: torch.Tensor, h_hat: torch.Tensor) -> torch.Tensor:
        """``x [N, C, H, W]``, ``h_hat [N, h_channels, H', W']`` of any size."""
        gain, shift = self.conv(map_like(h_hat, x)).chunk(2, dim=1)
        return torch.addcmul(shift.to(x.dtype), x, 1 + gain.to(x.dtype))


class SynthesisBlock(nn.Module):
    """A learned constant (`in_channels` 0) or an enlarging layer, ĥ's scale and shift, a layer, the image so far.

    `size`: height and width of the output. `h_channels`: 0 for no ĥ.
    """

    fir: torch.Tensor

    def __init__(self, in_channels: int, channels: int, w_dim: int, size: tuple[int, int], img_channels: int,
                 h_channels: int) -> None:
        super().__init__()
        self.const = None if in_channels else nn.Parameter(torch.randn(channels, *size))
        self.conv0 = SynthesisLayer(in_channels, channels, w_dim, size, up=True) if in_channels else None
        self.scale_shift = ScaleShift(h_channels, channels) if h_channels else None
        self.conv1 = SynthesisLayer(channels, channels, w_dim, size, up=False)
        self.to_rgb = ToRGB(channels, img_channels, w_dim)
        if in_channels:
            self.register_buffer("fir", fir_filter(), persistent=False)

    def forward(self, x: torch.Tensor | None, img: torch.Tensor | None, ws: Sequence[torch.Tensor],
                h_hat: torch.Tensor | None, noise: Noise) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's map and image. `ws`: one ``[N, w_dim]`` per convolution and one for the image."""
        if self.conv0 is not None:
            assert x is not None
            x = self.conv0(x, ws[0], noise)
        else:
            assert self.const is not None
            x = self.const.expand(len(ws[0]), -1, -1, -1)
            if x.device.type == "cpu":
                x = x.contiguous(memory_format=torch.channels_last)  # what follows keeps it (`conv3x3`)
        if self.scale_shift is not None:
            x = self.scale_shift(x, h_hat)
        x = self.conv1(x, ws[-2], noise)
        rgb = self.to_rgb(x, ws[-1]).to(ws[-1].dtype)  # the sum over blocks needs all of float32
        if img is not None:
            rgb = rgb + upfirdn2d(img, self.fir, up=2, padding=(2, 1, 2, 1), gain=4)
        return x, rgb


class Generator(nn.Module):
    """StyleGAN2, 32 to 1024 px, conditioned on nothing, ``c``, ``h`` or both.

    z_dim, w_dim  widths of the noise z and of the style vectors w
    c_parts       widths of the parts of c by name, None or {} for no c
    h_channels    channels of the noised representation h, 0 for none; then ``h`` and ``sigma`` are needed by `forward`
                  and pass through `Modulation` (DIC-GAN, Eq. 6) into a scale and shift in every block
    sigma_input   the network is told σ, which differs between samples
    encoder       None, or the nested spec (``class_name`` and options) of the network f that makes latents of images
    img_resolution  short side of the image, a power of two from 32 to 1024
    img_channels  channels of the image
    aspect        height and width in multiples of the short side
    channel_base, channel_max  a map of short side s has min(channel_base // s, channel_max) channels, at least 1
    map_layers    layers of the mapping network
    """

    has_mapping = True

    def __init__(self, z_dim: int = 64, w_dim: int = 128, c_parts: Mapping[str, int] | None = None,
                 h_channels: int = 0, sigma_input: bool = False, encoder: Mapping[str, Any] | None = None,
                 img_resolution: int = 256, img_channels: int = 3, aspect: Sequence[int] = (1, 1),
                 channel_base: int = 32768, channel_max: int = 512, map_layers: int = 2) -> None:
        super().__init__()
        if img_resolution not in RESOLUTIONS:
            raise UserError(f"StyleGAN2 makes images of side {', '.join(map(str, RESOLUTIONS))}, not {img_resolution}; "
                            "convert the data set with dataset_tool.py --resolution.")
        self.z_dim, self.w_dim, self.c_dim = z_dim, w_dim, sum((c_parts or {}).values())
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.encoder: Any = None if encoder is None else dnnlib.construct(encoder)  # an Encoder, or None
        self.modulation = Modulation(z_dim, h_channels, sigma_input=sigma_input) if h_channels else None
        map_channels = 0 if self.modulation is None else self.modulation.out_channels
        self.mapping = MappingNetwork(z_dim, w_dim, c_parts or {}, map_layers)
        self.blocks = nn.ModuleDict()
        side, channels = 4, 0
        while side <= img_resolution:
            wide = max(min(channel_base // side, channel_max), 1)
            size = (side * aspect[0], side * aspect[1])
            self.blocks[str(side)] = SynthesisBlock(channels, wide, w_dim, size, img_channels, map_channels)
            side, channels = side * 2, wide
        self.num_ws = 2 * len(self.blocks)

    def forward(self, z: torch.Tensor, c: torch.Tensor | None = None, h: torch.Tensor | None = None,
                sigma: float | torch.Tensor | None = None, noise: Noise = None,
                truncation: float = 1.0) -> torch.Tensor:
        """Images ``[N, img_channels, H, W]``, nominally in [-1, 1] and not clipped, in the type of z.

        ``z [N, z_dim]``, ``c [N, c_dim]`` (None or zero-width where c_dim is 0), ``h [N, h_channels, H', W']`` with its
        noise level `sigma` where the generator takes one. `noise`: source of per-pixel noise, "const" for the stored
        maps, None for none. `truncation`: see `map`. Raises ValueError when a condition is missing or not expected.
        """
        h_hat = self.modulate(h, z, sigma)
        return self.synthesize(self.map(z, c, truncation), h_hat, noise).to(z.dtype)

    def map(self, z: torch.Tensor, c: torch.Tensor | None = None, truncation: float = 1.0) -> torch.Tensor:
        """Styles ``ws [N, num_ws, w_dim]``, equal for all layers; ValueError for a wrong width of c.

        `truncation`: 1 leaves them, 0 takes the mean w, values between move them towards it (Karras et al. 2019,
        section B). In training mode the mean follows.
        """
        w = self.mapping(z, c)
        if truncation != 1:
            w = self.mapping.w_avg.lerp(w, truncation)
        return w[:, None].repeat(1, self.num_ws, 1)

    def modulate(self, h: torch.Tensor | None, z: torch.Tensor,
                 sigma: float | torch.Tensor | None) -> torch.Tensor | None:
        """ĥ for `synthesize` (Eq. 6); ValueError when h is missing or not expected."""
        return modulate_h(self.modulation, h, z, sigma)

    def synthesize(self, ws: torch.Tensor, h_hat: torch.Tensor | None = None, noise: Noise = None) -> torch.Tensor:
        """Images of ``ws [N, num_ws, w_dim]``, in its type. `h_hat`: result of `modulate`. `noise`: see `forward`."""
        if (h_hat is None) != (self.modulation is None):
            raise ValueError("ĥ goes with generators that take h, and with no other")
        if isinstance(noise, str) and noise != "const":
            raise ValueError(f'noise is a source, "const" or None, not {noise!r}')
        styles = ws.unbind(dim=1)
        x, img = None, None
        for k, block in enumerate(self.blocks.values()):
            # The style of a block's image, its last one, is also the first one of the next block.
            x, img = block(x, img, styles[max(2 * k - 1, 0) : 2 * k + 2], h_hat, noise)
        assert img is not None
        return img
