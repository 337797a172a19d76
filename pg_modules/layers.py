"""Layers shared by generator and discriminator: spectral normalisation, conditional batch norm, noise, gating."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dnnlib import UserError
from pg_modules.batch_norm import channels_last
from pg_modules.resize import bilinear
from pg_modules.upsample_conv import upsample_conv2d
from pg_modules.winograd import conv3x3

# (n, height, width) -> [n, 1, height, width] standard normal noise.
NoiseSource = Callable[[int, int, int], torch.Tensor]

SN_EPS = 1e-12
LARGER = 8  # times a sample's size, from which on a weight isn't divided


class _Singular(torch.autograd.Function):
    """A weight and its estimate σ = Σ u v · weight, whose gradients come together in one pass over the weight."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, sigma: torch.Tensor, u: torch.Tensor,
                v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(u, v)
        return weight.view_as(weight), sigma.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        u, v = ctx.saved_tensors
        of_weight, of_sigma = grads
        return torch.addcmul(of_weight, (of_sigma * u).to(of_weight.dtype), v.to(of_weight.dtype)), None, None, None


class _SpectralNorm(nn.Module):
    """Divides ``weight`` by an estimate of its largest singular value (Miyato et al. 2018, Algorithm 1).

    Every forward pass in training mode advances the singular vectors ``u`` and ``v`` by one power
    iteration, v first, as ``torch.nn.utils.spectral_norm`` does; gradients flow through the estimate.
    Nothing but parameters and buffers is kept between passes, so a module can be copied at any time.
    """

    weight: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    out_dim = 0  # dimension of `weight` that counts outputs

    def _init_vectors(self) -> None:
        rows = self.weight.shape[self.out_dim]
        for name, size in (("u", rows), ("v", self.weight.numel() // rows)):
            vector = torch.randn(size, device=self.weight.device, dtype=self.weight.dtype)
            self.register_buffer(name, F.normalize(vector, dim=0, eps=SN_EPS))

    def weight_and_sigma(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight and the estimate, a scalar in float32 at least; advances u and v in training mode."""
        with torch.no_grad(), torch.autocast(self.weight.device.type, enabled=False):
            # Autocast would run the products in bfloat16, whose rounding is as large as the steps of u and v.
            weight = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
            matrix = weight.transpose(0, self.out_dim).flatten(1)
            u, v = self.u.to(weight.dtype), self.v.to(weight.dtype)
            if self.training:
                v = F.normalize(torch.mv(matrix.t(), u), dim=0, eps=SN_EPS)
            left = torch.mv(matrix, v)
            if self.training:
                u = F.normalize(left, dim=0, eps=SN_EPS)
                self.u.copy_(u)
                self.v.copy_(v)
            sigma = torch.dot(u, left)
            # In evaluation mode they are the buffers, which a later pass in training mode overwrites.
            u, v = u.clone(), v.clone()
        # As factors of a product that has the weight's shape.
        sizes = list(self.weight.shape)
        return _Singular.apply(self.weight, sigma, u.view([-1 if i == self.out_dim else 1 for i in range(len(sizes))]),
                               v.view([1 if i == self.out_dim else size for i, size in enumerate(sizes)]))

    def normalized_weight(self) -> torch.Tensor:
        """The weight divided by the estimate."""
        weight, sigma = self.weight_and_sigma()
        return (weight / sigma).to(weight.dtype)

    def divided(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x ``[N, …]`` and the weight, one of them divided by the estimate, for an operation that is linear in both.

        A weight that is much larger than a sample of x stays as it is: to divide it, forward and backward, would
        take longer and several times its memory.
        """
        if LARGER * x.shape[1:].numel() <= self.weight.numel():
            weight, sigma = self.weight_and_sigma()
            return x / sigma, weight
        return x, self.normalized_weight()


class SNConv2d(_SpectralNorm, nn.Conv2d):
    """Conv2d with spectral normalisation; same arguments and initialisation as `torch.nn.Conv2d`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0,
                 groups: int = 1, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self._init_vectors()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, in, H, W]`` to ``[N, out, H', W']``."""
        return self._conv_forward(*self.divided(x), self.bias)


class SNLinear(_SpectralNorm, nn.Linear):
    """Linear layer with spectral normalisation."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self._init_vectors()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, in]`` to ``[N, out]``."""
        return F.linear(*self.divided(x), self.bias)


class SNConvTranspose2d(_SpectralNorm, nn.ConvTranspose2d):
    """Transposed convolution of stride 1 with spectral normalisation."""

    out_dim = 1

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias=bias)
        self._init_vectors()

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """``[N, in, H, W]`` to ``[N, out, H + kernel_size - 1, W + kernel_size - 1]``; no other `output_size`."""
        assert output_size is None
        return F.conv_transpose2d(*self.divided(x), self.bias)


class SNConv3x3(SNConv2d):
    """A spectrally normalised 3×3 convolution with a margin of one zero and without bias, as `conv3x3`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, in, H, W]`` to ``[N, out, H, W]``."""
        return conv3x3(*self.divided(x))


class SNUpConv2d(SNConv2d):
    """Nearest-neighbour ×2, then a spectrally normalised 3×3 convolution without bias, as `upsample_conv2d`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, in, H, W]`` to ``[N, out, 2H, 2W]``."""
        return upsample_conv2d(*self.divided(x))


class NoiseInjection(nn.Module):
    """Adds per-pixel noise, equal for all channels, times a learned weight that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, noise: NoiseSource | None) -> torch.Tensor:
        """`noise`: called with (n, height, width); None adds nothing."""
        return add_noise(x, None if noise is None else noise(x.shape[0], x.shape[2], x.shape[3]), self.weight)


def add_noise(x: torch.Tensor, drawn: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    """x ``[N, C, H, W]`` plus `weight` ``[1]`` times `drawn` ``[N, 1, H, W]``, in the type of x; None adds nothing."""
    return x if drawn is None else torch.addcmul(x, weight.to(x.dtype), drawn.to(x))


def freeze_blocks(blocks: Sequence[nn.Module], count: int, most: int | None = None) -> None:
    """FreezeD (Mo et al. 2020): the first `count` of `blocks` are no longer trained.

    `most`: the largest sensible count, the number of blocks unless given; `UserError` above it.
    """
    most = len(blocks) if most is None else most
    if not 0 <= count <= most:
        raise UserError(f"--freeze-d {count}: this discriminator has {most} blocks that can be frozen.")
    for block in blocks[:count]:
        block.requires_grad_(False)


def gated(x: torch.Tensor) -> torch.Tensor:
    """Gated linear unit (Dauphin et al. 2017): the first half of the channels, times the sigmoid of the second.

    As `torch.nn.functional.glu`, whose gradient would change the order in memory of maps with the channels last.
    """
    if channels_last(x):
        return F.glu(x.permute(0, 2, 3, 1), dim=3).permute(0, 3, 1, 2)
    return F.glu(x, dim=1)


def resize_map(h: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """``[N, C, H, W]`` resized bilinearly (align_corners=False) to `size`; 1×1 maps stay as they broadcast."""
    if h.shape[2:] == (1, 1) or tuple(h.shape[2:]) == size:
        return h
    return bilinear(h, size)


def map_like(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """h ``[N, C, H, W]`` for an operation with x: `resize_map` to its size, and with the channels last if x has them.

    What two maps make together is slow if their orders in memory differ, and may have that of the wrong one.
    """
    h = resize_map(h, (x.shape[2], x.shape[3]))
    return h.contiguous(memory_format=torch.channels_last) if channels_last(x) else h


def normalize_second_moment(x: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Rows of ``[N, dim]`` scaled to a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()
