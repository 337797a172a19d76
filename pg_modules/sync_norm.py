"""Batch normalisation over the images of all processes, on any device (torch's own is for CUDA alone)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from pg_modules.batch_norm import BatchNorm2d
from torch_utils import distributed, exchange


class _Normalize(torch.autograd.Function):
    """x [N, C, H, W] normalised by given moments that are those of all processes' x, to which gradients flow, too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None,
                mean: torch.Tensor, var: torch.Tensor, eps: float) -> torch.Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Ioffe and Szegedy 2015, section 3, with sums over all processes; those of weight and bias stay local."""
        x, weight, mean, scale = ctx.saved_tensors
        gradient = grad_outputs[0].to(mean.dtype)
        normal = (x.to(mean.dtype) - mean[:, None, None]) * scale[:, None, None]
        sums = torch.stack([gradient.sum(dim=(0, 2, 3)), (gradient * normal).sum(dim=(0, 2, 3))])
        count = x.numel() // x.shape[1] * distributed.world()
        of_bias, of_weight = (exchange.all_sum(sums.clone()) / count)[:, :, None, None]
        if weight is not None:
            scale = scale * weight
        to_x = scale[:, None, None] * (gradient - of_bias - normal * of_weight)
        to_weight, to_bias = (sums[1], sums[0]) if weight is not None else (None, None)
        return to_x.to(x.dtype), to_weight, to_bias, None, None, None


class SyncBatchNorm2d(BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose statistics in training are those of all processes' images.

    Every process has as many images, and all call it together. Its gradient is that of the sum of their losses.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        mean, var = self._moments(x)
        return _Normalize.apply(x, self.weight, self.bias, mean, var, self.eps)

    @torch.no_grad()
    def _moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance [C] over all processes, in float32 at least; the running ones follow."""
        wide = x if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
        means, variances = exchange.gather(torch.stack([mean, var])).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)  # Chan et al. 1979, groups of one size
        self.follow(mean, var, x.numel() // x.shape[1] * distributed.world())
        return mean, var


def synchronise(net: nn.Module) -> None:
    """Every `torch.nn.BatchNorm2d` of a network becomes a `SyncBatchNorm2d`, if there are several processes."""
    if distributed.world() == 1:
        return
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SyncBatchNorm2d  # same tensors under the same names
