"""Batch normalisation of a frozen network as part of its convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Folds:
    """Convolutions of an EfficientNet that do the work of the normalisation behind them, which is taken out.

    In evaluation mode that is a scale and a shift per channel. Both forms round differently (2e-6 of the maps in
    float32), nothing else. What the network was loaded with is kept, so that weights in another type are folded anew,
    not rounded twice.

    net: a timm EfficientNet, whose blocks run their layers in the order in which they hold them.
    """

    def __init__(self, net: nn.Module) -> None:
        self._folds: list[tuple[nn.Conv2d, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for block in net.modules():
            conv: Any = None
            for name, layer in list(block.named_children()):
                if isinstance(layer, nn.BatchNorm2d):
                    assert isinstance(conv, nn.Conv2d), f"{name} doesn't follow a convolution"
                    self._fold(conv, layer)
                    # timm's class does the activation, too.
                    setattr(block, name, getattr(layer, "act", nn.Identity()))
                conv = layer
        self.apply()

    @torch.no_grad()
    def _fold(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        assert conv.bias is None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        conv.bias = nn.Parameter(torch.zeros_like(norm.bias), requires_grad=False)
        shift = norm.bias.double() - norm.running_mean.double() * scale
        self._folds.append((conv, conv.weight.detach().clone(), scale, shift))

    @torch.no_grad()
    def apply(self) -> None:
        """Makes the weights, in the type and on the device that the network now has."""
        for conv, weight, scale, shift in self._folds:
            assert conv.bias is not None
            conv.weight.copy_((weight.double() * scale.view(-1, 1, 1, 1)).to(conv.weight.dtype))
            conv.bias.copy_(shift.to(conv.bias.dtype))
