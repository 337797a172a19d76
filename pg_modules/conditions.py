"""The condition vector c: its parts, their embeddings in generators and their projections in discriminators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from pg_modules.layers import normalize_second_moment

# Parts that a condition vector c may be made of, in this order.
LABEL, INSTANCE, TIME = "label", "instance", "time"



def split_parts(c: torch.Tensor | None, parts: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """The parts of ``c [N, c_dim]`` by name; ValueError when c isn't as wide as `parts` add up to."""
    width, expected = (0 if c is None else c.shape[1]), sum(parts.values())
    if width != expected:
        raise ValueError(f"a condition vector of width {expected} ({dict(parts)}) is needed, not {width}")
    if c is None or not parts:
        return {}
    return dict(zip(parts, c.split(list(parts.values()), dim=1), strict=True))


class Embedding(nn.Module):
    """Linear map of condition vectors with N(0, 1) weights.

    A one-hot ``c`` picks a row, as `torch.nn.Embedding` would; soft labels mix rows.
    """

    def __init__(self, c_dim: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_dim, dim))

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        """``[N, c_dim]`` to ``[N, dim]``."""
        with torch.autocast(c.device.type, enabled=False):  # a look-up shouldn't round its table
            return c.to(self.weight.dtype) @ self.weight


class FeatureEmbedding(nn.Linear):
    """A linear map whose results are scaled to a mean square of 1.

    Features of length 1 would otherwise be drowned by everything else: IC-GAN's StyleGAN2 embeds instances like this;
    the spectrally normalised linear map of its BigGAN leaves some hundredths per channel.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, in]`` to ``[N, out]``."""
        return normalize_second_moment(super().forward(x).to(x.dtype))


class VectorEmbedding(nn.Module):
    """The parts of c, embedded one by one and concatenated: labels by a table, features by `FeatureEmbedding`.

    parts         widths by name, of `LABEL` and `INSTANCE`
    label_dim     width of an embedded label
    instance_dim  width of an embedded instance feature
    out_dim       (attribute) width of the result
    """

    def __init__(self, parts: Mapping[str, int], label_dim: int, instance_dim: int) -> None:
        super().__init__()
        self.parts = dict(parts)
        unknown = set(parts) - {LABEL, INSTANCE}
        if unknown:
            raise ValueError(f"the generator can't be conditioned on {', '.join(sorted(unknown))}")
        self.embeds = nn.ModuleDict({
            name: Embedding(width, label_dim) if name == LABEL else FeatureEmbedding(width, instance_dim)
            for name, width in parts.items()})
        self.out_dim = sum(label_dim if name == LABEL else instance_dim for name in parts)

    def forward(self, c: torch.Tensor | None) -> torch.Tensor:
        """``[N, c_dim]`` to ``[N, out_dim]``; ValueError for another width."""
        parts = split_parts(c, self.parts)
        return torch.cat([self.embeds[name](part) for name, part in parts.items()], dim=1)


def embed_condition(embed: nn.Module | None, c: torch.Tensor | None) -> torch.Tensor | None:
    """Embedded c of a generator with or without an embedding; ValueError when c is missing or not expected."""
    if embed is None:
        split_parts(c, {})
        return None
    return embed(c)


class ConditionProjection(nn.Module):
    """c to the vector that a discriminator's features are projected on (Miyato and Koyama 2018).

    Labels go through a table and a leaky ReLU (Projected GAN), features and times through a linear map (IC-GAN; D_emb
    of DISP). Several parts share the channels equally, as in class-conditional IC-GAN.
    """

    def __init__(self, parts: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.parts = dict(parts)
        self.widths = [dim // len(parts) + (i < dim % len(parts)) for i in range(len(parts))]
        self.project = nn.ModuleDict({
            name: LabelProjection(width, out) if name == LABEL else FeatureEmbedding(width, out)
            for (name, width), out in zip(parts.items(), self.widths, strict=True)})

    def forward(self, c: torch.Tensor | None) -> torch.Tensor:
        """``[N, c_dim]`` to ``[N, dim]``; ValueError for another width."""
        parts = split_parts(c, self.parts)
        return torch.cat([self.project[name](part) for name, part in parts.items()], dim=1)


class LabelProjection(nn.Module):
    """``[N, c_dim]`` to ``[N, dim]``: a table of width 128, a linear layer, leaky ReLU."""

    def __init__(self, c_dim: int, dim: int, table_dim: int = 128) -> None:
        super().__init__()
        self.embed = Embedding(c_dim, table_dim)
        self.linear = nn.Linear(table_dim, dim)

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return F.leaky_relu(self.linear(self.embed(c)), 0.2)


def with_time(c: torch.Tensor | None, time: torch.Tensor | None) -> torch.Tensor | None:
    """c with the embedded diffusion time as its last part; either may be None."""
    if c is None or time is None:
        return time if c is None else c
    return torch.cat([c, time.to(c.dtype)], dim=1)
