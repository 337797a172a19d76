"""Noise estimators: a residual MLP for vectors, and the wrapper that gives every network its parametrisation.

The U-Net for maps stands in `ldm.unet`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import dnnlib
from ldm import schedule
from ldm.names import PREDICTIONS


class TimeEmbedding(nn.Module):
    """Sinusoids of the time index, then two linear layers (Ho et al. 2020): int64 ``[N]`` -> ``[N, 4 * channels]``."""

    frequencies: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        frequencies = torch.exp(torch.arange(half) * (-math.log(10000) / max(half - 1, 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * half, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        angles = t[:, None].float() * self.frequencies[None, :]
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))


class ClassEmbedding(nn.Module):
    """A vector per class, and a last one for "no class" (classifier-free guidance): int64 ``[N]`` -> ``[N, width]``."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, y: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """None is "no class" for every row of `like`."""
        return self.table(torch.full((len(like),), self.classes, device=like.device) if y is None else y)


def embed(time: nn.Module, label: ClassEmbedding | None, t: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    """Swish of the embedding of time, plus that of the class where a network knows classes."""
    emb = time(t)
    return functional.silu(emb if label is None else emb + label(y, emb))


class MLPBlock(nn.Module):
    """x + linear(dropout(swish(scale * norm(x) + shift))), scale and shift from the time embedding."""

    def __init__(self, width: int, time_width: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.modulation = nn.Linear(time_width, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(emb).chunk(2, dim=1)
        return x + self.linear(self.dropout(functional.silu(self.norm(x) * (1 + scale) + shift)))


class NormFeatures(nn.Module):
    """How long x is, at four scales: ``[N, D]`` -> ``[N, 4]`` within (-1, 1).

    Encoders that normalise their latents put them on a sphere; how far a noisy latent is off that sphere then
    tells much of its noise, and the less noise there is, the finer the distance to be seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scales = (1.0, 4.0, 16.0, 64.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The logarithm of the mean square has deviation sqrt(2 / D) for normal x.
        length = (x.square().mean(1, keepdim=True) + 1e-8).log() * math.sqrt(x.shape[1] / 2)
        return torch.tanh(length * length.new_tensor(self.scales))


class MLP(nn.Module):
    """Residual MLP over the flattened latent, plus a learned multiple of the latent itself.

    The multiple depends on time and on the latent's length only (`NormFeatures`): a few weights that learn the
    radial part of the distribution from little data, where the MLP alone would overfit first.

    shape    (C, H, W) of the latents
    width    units of every hidden layer; `groups` of its GroupNorms must divide it
    layers   hidden layers, each one residual block
    dropout  in every block
    classes  number of classes that it is told of; 0 = none

    forward: x ``[N, C, H, W]``, t int64 ``[N]``, classes y int64 ``[N]`` (`classes` or None: no class) -> like x; zero
    at initialisation.
    """

    def __init__(self, shape: Sequence[int], width: int = 256, layers: int = 4, groups: int = 1,
                 dropout: float = 0.0, time_channels: int = 64, classes: int = 0) -> None:
        super().__init__()
        size = math.prod(shape)
        emb = 4 * time_channels
        self.time = TimeEmbedding(time_channels)
        self.length = NormFeatures()
        self.gain = nn.Sequential(nn.Linear(emb + 4, 64), nn.SiLU(), nn.Linear(64, 1))
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(MLPBlock(width, emb + 4, groups, dropout) for _ in range(layers))
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.last = nn.Linear(width, size)
        self.label = ClassEmbedding(classes, emb) if classes else None
        for layer in (self.last, self.gain[-1]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        flat = x.flatten(1)
        emb = torch.cat([embed(self.time, self.label, t, y), self.length(flat)], dim=1)
        hidden = self.first(flat)
        for block in self.blocks:
            hidden = block(hidden, emb)
        out = self.last(functional.silu(self.norm(hidden))) + self.gain(emb) * flat
        return out.reshape(x.shape)


class NoiseEstimator(nn.Module):
    """eps(x_t, t) by a network F in one of three parametrisations.

    ``epsilon``: F itself. ``gaussian``: sqrt(1 - a_t) x_t + sqrt(a_t) F. The first term is the best estimate
    for unit normal data, so that a network that gives zero is that guess and F learns only what the data have
    beyond it. F's target is then v = sqrt(a_t) eps - sqrt(1 - a_t) x_0 of Salimans and Ho (2022), of unit size at
    all times, while the loss stays on eps. ``v``: the same with the loss on v, which is that on eps divided by a_t.
    """

    signal: torch.Tensor
    noise: torch.Tensor

    def __init__(self, net: nn.Module, alpha_bar: torch.Tensor, parametrisation: str = "gaussian") -> None:
        super().__init__()
        assert parametrisation in PREDICTIONS, parametrisation
        self.net = net
        self.parametrisation = parametrisation
        self.register_buffer("signal", alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("noise", (1 - alpha_bar).sqrt().float(), persistent=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Noise estimate ``[N, C, H, W]`` for noisy whitened latents of that shape, times and classes int64 ``[N]``."""
        return self._eps(x, t, self.net(x, t, y))

    def _eps(self, x: torch.Tensor, t: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if self.parametrisation == "epsilon":
            return out
        return self._at(self.noise, t) * x + self._at(self.signal, t) * out

    def loss(self, x_t: torch.Tensor, x_0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor,
             y: torch.Tensor | None = None) -> torch.Tensor:
        """Mean squared error of what the parametrisation is trained on (Eq. 7, squared), a scalar.

        `x_t` of `x_0` and `eps` at times `t`, all ``[N, C, H, W]``.
        """
        out = self.net(x_t, t, y)
        if self.parametrisation == "v":
            return (out - (self._at(self.signal, t) * eps - self._at(self.noise, t) * x_0)).square().mean()
        return (self._eps(x_t, t, out) - eps).square().mean()

    def _at(self, values: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return values[t].reshape(-1, 1, 1, 1)


def guided(net: NoiseEstimator, y: torch.Tensor, scale: float) -> Callable[..., torch.Tensor]:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6 with w = scale - 1): (x, t) -> eps for classes y ``[N]``.

    The estimate without a class plus `scale` times what the class adds: 1 is the class as learned.
    """
    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if scale == 1:
            return net(x, t, y)
        free = net(x, t)
        return free if scale == 0 else free + scale * (net(x, t, y) - free)
    return eps


def gaussian_guess(x: torch.Tensor, a_t: torch.Tensor) -> torch.Tensor:
    """The best noise estimate sqrt(1 - a_t) x_t if the data were unit normal; `a_t` float64 ``[N]``."""
    return (1 - a_t).sqrt().to(x).reshape(-1, *[1] * (x.ndim - 1)) * x


def build(config: Mapping[str, Any], shape: Sequence[int]) -> NoiseEstimator:
    """The estimator that a resolved configuration (`ldm.presets.resolve`) describes, for latents (C, H, W)."""
    net = dnnlib.construct(config["net"], shape=tuple(shape))
    return NoiseEstimator(net, alpha_bars_of(config), config["parametrisation"])


def alpha_bars_of(config: Mapping[str, Any]) -> torch.Tensor:
    """float64 ``[T]``: the schedule of a resolved configuration."""
    return schedule.alpha_bars(**dnnlib.bind(schedule.alpha_bars, config["schedule"]))
