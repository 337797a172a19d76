"""The U-Net for sampling on a CPU: what `ldm.unet` computes, faster, by the C kernels of `pg_modules`.

Maps have their channels last. 3×3 convolutions are Winograd's F(4×4, 3×3) with kernels that are made of the weights
once; norm and swish are two passes; 1×1 convolutions and attention are matrix products, and what all blocks are told of
time and class is one. Nothing here has a gradient.
"""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn
from torch.nn import functional

from ldm.denoiser import NoiseEstimator, embed
from ldm.unet import Attention, Norm, NormSwish, ResBlock, UNet
from pg_modules import kernels, winograd_kernels

FEW_LATENTS = 4  # below so many, reading four times the weights takes longer than is gained (docs/performance.md)
FEW_CHANNELS = 32
MOST_OF_A_GROUP = 64  # channels; the kernel's CHUNK


class Convolution(nn.Module):
    """A 3×3 convolution with a margin of one zero."""

    of_tiles: torch.Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        self.register_buffer("of_tiles", winograd_kernels.of_tiles(conv.weight.detach()).contiguous())
        self.bias = conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = winograd_kernels.convolve_with(_pixels(x), self.of_tiles)
        return y.add_(self.bias).permute(0, 3, 1, 2)


class Pointwise(nn.Module):
    """A 1×1 convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(_pixels(x), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class KernelNorm(nn.Module):
    """`Norm`, or `NormSwish`."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm, self.swish = norm, isinstance(norm, NormSwish)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels, norm = _pixels(x), self.norm
        n, height, width, channels = pixels.shape
        y = torch.empty_like(pixels)
        kernels.call("group_norm", pixels, norm.weight, norm.bias, norm.eps, int(self.swish), y, n, height * width,
                     channels, channels // norm.num_groups)
        return y.permute(0, 3, 1, 2)


class PixelAttention(nn.Module):
    """`Attention`."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.norm, self.qkv = KernelNorm(attention.norm), Pointwise(attention.qkv)
        self.proj = Pointwise(attention.proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = _pixels(self.qkv(self.norm(x))).flatten(1, 2).chunk(3, dim=2)  # each [N, H*W, C]
        weights = torch.softmax(torch.bmm(q * q.shape[2] ** -0.5, k.transpose(1, 2)), dim=2)
        seen = torch.bmm(weights, v).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return x + self.proj(seen)


class Share(nn.Module):
    """One block's columns of what all blocks are told together."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, told: torch.Tensor) -> torch.Tensor:
        return told[:, self.start:self.end]


class SamplingUNet(nn.Module):
    """`UNet` on either way: as it is for few latents, and where gradients are wanted."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.plain = net
        self.fast = copy.deepcopy(net, {id(weight): weight for weight in net.parameters()})  # the same weights
        blocks = [part for part in self.fast.modules() if isinstance(part, ResBlock)]
        for name in ("weight", "bias"):
            self.register_buffer(name, torch.cat([getattr(block.time, name).detach() for block in blocks]))
        ends = itertools.accumulate(block.time.out_features for block in blocks)
        for block, end in zip(blocks, ends, strict=True):
            block.time = Share(end - block.time.out_features, end)  # type: ignore[assignment]
        _replace(self.fast)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        if len(x) < FEW_LATENTS or torch.is_grad_enabled() or x.dtype != self.weight.dtype:
            return self.plain(x, t, y)
        told = functional.linear(embed(self.fast.time, self.fast.label, t, y), self.weight, self.bias)
        return self.fast.with_embedding(x.contiguous(memory_format=torch.channels_last), told).contiguous()


def for_sampling(estimator: NoiseEstimator) -> NoiseEstimator:
    """An estimator of the same weights, which mustn't change any more; faster without gradients where this module can.

    That is for a `UNet` on a CPU with C kernels, unless a norm has groups that these don't take; any other comes back
    as it is.
    """
    net = estimator.net
    if not isinstance(net, UNet) or not kernels.usable(next(net.parameters())):
        return estimator
    norms = [part for part in net.modules() if isinstance(part, Norm)]
    if max(norm.num_channels // norm.num_groups for norm in norms) > MOST_OF_A_GROUP:
        return estimator
    return copy.deepcopy(estimator, {id(net): SamplingUNet(net)})


def _pixels(x: torch.Tensor) -> torch.Tensor:
    """``[N, C, H, W]`` as contiguous ``[N, H, W, C]``; a copy only where the channels aren't last."""
    return x.permute(0, 2, 3, 1).contiguous()


def _replace(module: nn.Module) -> None:
    """Puts faster forms in the places of the parts of `module`."""
    for name, part in module.named_children():
        faster = _faster(part)
        if faster is None:
            _replace(part)
        else:
            setattr(module, name, faster)


def _faster(part: nn.Module) -> nn.Module | None:
    """The faster form of a part that has one."""
    if isinstance(part, Attention):
        return PixelAttention(part)
    if isinstance(part, Norm):
        return KernelNorm(part)
    if not isinstance(part, nn.Conv2d) or part.stride != (1, 1):
        return None
    if part.kernel_size == (1, 1):
        return Pointwise(part)
    return Convolution(part) if min(part.in_channels, part.out_channels) >= FEW_CHANNELS else None
