"""Adaptive discriminator augmentation (Karras et al. 2020a): the pipeline ``bgc`` and the control of its strength.

Pixel blitting, geometry and colour as in the paper's appendix B, each with probability p. All randomness is drawn on
the CPU from one `torch.Generator`, so devices see the same augmentations.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pg_modules.ada_warp import warp
from torch_utils.device import sent, sent_like

# Standard deviations of appendix B; of scale and contrast and saturation in powers of two.
SHIFT_RATIO = 0.125  # of the side: largest shift by whole pixels, and standard deviation of the fractional one
SCALE_STD = 0.2
ASPECT_STD = 0.2
BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5
SATURATION_STD = 1.0

Entry = torch.Tensor | float

# On colours (r, g, b, 1): projections onto the grey axis, onto the colours and onto the constant, and the cross product
# with the grey axis.
LUMA = 1 / math.sqrt(3)
GREY, COLOUR, ONE, CROSS = (torch.tensor(rows, dtype=torch.float64, device="cpu") for rows in (
    [[1 / 3, 1 / 3, 1 / 3, 0]] * 3 + [[0.0] * 4],
    [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0] * 4],
    [[0.0] * 4] * 3 + [[0, 0, 0, 1]],
    [[0, -LUMA, LUMA, 0], [LUMA, 0, -LUMA, 0], [-LUMA, LUMA, 0, 0], [0] * 4]))


class Draws:
    """Parameters of one augmentation for n images, each its neutral value with probability 1 − p. float64, [n]."""

    def __init__(self, n: int, p: float, generator: torch.Generator) -> None:
        self.n, self.p, self.generator = n, p, generator

    def _pick(self, values: torch.Tensor, p: float | None) -> torch.Tensor:
        chosen = torch.rand(self.n, generator=self.generator, dtype=torch.float64) < (self.p if p is None else p)
        return torch.where(chosen, values, 0.0)

    def integers(self, count: int) -> torch.Tensor:
        """0 to count − 1, all equally often; neutral 0."""
        return self._pick(torch.randint(count, (self.n,), generator=self.generator).double(), None)

    def uniform(self, bound: float, p: float | None = None) -> torch.Tensor:
        """−bound to bound; neutral 0. p: instead of the common one."""
        return self._pick((torch.rand(self.n, generator=self.generator, dtype=torch.float64) * 2 - 1) * bound, p)

    def normal(self, std: float) -> torch.Tensor:
        """Normal with mean 0; neutral 0."""
        return self._pick(torch.randn(self.n, generator=self.generator, dtype=torch.float64) * std, None)

    def shift(self, std: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Normal, or uniform within `SHIFT_RATIO` if std is None; both directions together or neither."""
        both = (self.n, 2)
        if std is None:
            values = (torch.rand(both, generator=self.generator, dtype=torch.float64) * 2 - 1) * SHIFT_RATIO
        else:
            values = torch.randn(both, generator=self.generator, dtype=torch.float64) * std
        chosen = torch.rand(self.n, 1, generator=self.generator, dtype=torch.float64) < self.p
        right, down = torch.where(chosen, values, 0.0).unbind(1)
        return right, down


# Matrices. Those of the geometry map (column, row, 1) of the result, in pixels from the centre, to the source.

def _matrix(*rows: tuple[Entry, ...]) -> torch.Tensor:
    """Batch of matrices from rows of numbers and tensors [n]; float64, on the CPU."""
    entries = [torch.as_tensor(entry, dtype=torch.float64) for row in rows for entry in row]
    stacked = torch.stack(torch.broadcast_tensors(*entries), dim=-1)
    return stacked.reshape(-1, len(rows), len(rows[0]))


def undo_scale(width: Entry, height: Entry) -> torch.Tensor:
    """Undoes a scaling by two factors; negative ones flip."""
    return _matrix((1 / width, 0, 0), (0, 1 / height, 0), (0, 0, 1))


def undo_rotate(angle: torch.Tensor) -> torch.Tensor:
    """Undoes a rotation from the column axis towards the row axis, that is clockwise on the screen; radians."""
    return _matrix((angle.cos(), angle.sin(), 0), (-angle.sin(), angle.cos(), 0), (0, 0, 1))


def undo_shift(right: Entry, down: Entry) -> torch.Tensor:
    """Undoes a shift by pixels."""
    return _matrix((1, 0, -right), (0, 1, -down), (0, 0, 1))


def brightness(amount: Entry) -> torch.Tensor:
    """Adds to all channels."""
    return _matrix((1, 0, 0, amount), (0, 1, 0, amount), (0, 0, 1, amount), (0, 0, 0, 1))


def contrast(factor: Entry) -> torch.Tensor:
    """Multiplies all channels; 0 is middle grey."""
    return _matrix((factor, 0, 0, 0), (0, factor, 0, 0), (0, 0, factor, 0), (0, 0, 0, 1))


def luma_flip(flipped: torch.Tensor) -> torch.Tensor:
    """Mirrors grey where `flipped` is 1; hue and saturation stay."""
    return COLOUR + ONE - 2 * GREY * flipped[:, None, None]


def hue(angle: torch.Tensor) -> torch.Tensor:
    """Rotates colours around the grey axis; radians (Rodrigues' formula)."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return GREY + cos * (COLOUR - GREY) + sin * CROSS + ONE


def saturation(factor: torch.Tensor) -> torch.Tensor:
    """Multiplies the distance from the grey axis."""
    return GREY + (COLOUR - GREY) * factor[:, None, None] + ONE


# The pipeline.

def random_geometry(n: int, height: int, width: int, p: float, generator: torch.Generator) -> torch.Tensor:
    """``[n, 3, 3]`` for `warp`: blitting and geometry of appendix B, in its order (the first acts first)."""
    draw = Draws(n, p, generator)
    undo = undo_scale(1 - 2 * draw.integers(2), 1.0)
    if height == width:  # others would leave their frame
        undo = undo @ undo_rotate(draw.integers(4) * (math.pi / 2))
    right, down = draw.shift()
    undo = undo @ undo_shift((right * width).round(), (down * height).round())
    factor = draw.normal(SCALE_STD).exp2()
    undo = undo @ undo_scale(factor, factor)
    # Two rotations, around the change of aspect; so that either happens with probability p, each does with less.
    p_rotate = 1 - math.sqrt(1 - p)
    undo = undo @ undo_rotate(draw.uniform(math.pi, p_rotate))
    factor = draw.normal(ASPECT_STD).exp2()
    undo = undo @ undo_scale(factor, 1 / factor)
    undo = undo @ undo_rotate(draw.uniform(math.pi, p_rotate))
    right, down = draw.shift(SHIFT_RATIO)
    return undo @ undo_shift(right * width, down * height)


def random_colour(n: int, channels: int, p: float, generator: torch.Generator) -> torch.Tensor:
    """``[n, 4, 4]`` that act on (r, g, b, 1): the colour part of appendix B. Grey images have no hue or saturation."""
    draw = Draws(n, p, generator)
    matrix = brightness(draw.normal(BRIGHTNESS_STD))
    matrix = contrast(draw.normal(CONTRAST_STD).exp2()) @ matrix
    matrix = luma_flip(draw.integers(2)) @ matrix
    if channels == 3:
        matrix = hue(draw.uniform(math.pi)) @ matrix
        matrix = saturation(draw.normal(SATURATION_STD).exp2()) @ matrix
    return matrix


def recolour(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Images ``[N, 1 or 3, H, W]`` with ``[N, 4, 4]`` applied to their colours, grey ones as r = g = b."""
    rows = matrix[:, :3]
    if x.shape[1] == 1:
        grey = rows.mean(dim=1, keepdim=True)
        rows = torch.cat([grey[:, :, :3].sum(dim=2, keepdim=True), grey[:, :, 3:]], dim=2)
    rows = sent_like(rows, x)
    return (rows[:, :, :-1] @ x.flatten(2) + rows[:, :, -1:]).view(x.shape)


class AdaAugment(nn.Module):
    """Augments images with the probability `p`, a plain number that may be changed at any time; 0 is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.p = 0.0

    def forward(self, img: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Images ``[N, 1 or 3, H, W]`` augmented one by one, float32 at least; gradients of gradients flow through.

        `generator`: on the CPU; ValueError when it is None and p isn't 0.
        """
        if self.p == 0:
            return img
        if generator is None:
            raise ValueError(f"augmentation with p = {self.p} needs a torch.Generator")
        n, channels, height, width = img.shape
        undo = random_geometry(n, height, width, self.p, generator)
        colour = random_colour(n, channels, self.p, generator)
        with torch.autocast(img.device.type, enabled=False):  # rounded coordinates would shake the pixels
            x = img if img.dtype == torch.float64 else img.float()
            # Known on the CPU, and at small p many images stay where they are, which the warp needn't compute.
            moved = (undo != torch.eye(3, dtype=torch.float64)).flatten(1).any(dim=1).nonzero().squeeze(1)
            if len(moved):
                index = sent(moved, x.device)
                x = x.index_copy(0, index, warp(x.index_select(0, index), undo[moved]))
            return recolour(x, colour)


class AdaptiveAugment:
    """Controls p of an `AdaAugment` by how surely the discriminator knows reals (Karras et al. 2020a, section 3.1).

    Every `INTERVAL` iterations p goes up if r_t, the mean sign of the logits of reals since the last time, is above
    `target`, and down if below; from 0 to 1 takes `ada_kimg` thousand images. p stays within [0, `ada_max`].
    """

    INTERVAL = 4

    def __init__(self, pipeline: AdaAugment, target: float = 0.6, ada_kimg: float = 500, ada_max: float = 1.0) -> None:
        self.pipeline, self.target, self.ada_kimg, self.ada_max = pipeline, target, ada_kimg, ada_max
        self.signs: torch.Tensor | float = 0.0  # stays on the device between adaptations
        self.count = self.iterations = 0

    def observe(self, real_logits: torch.Tensor) -> None:
        """Takes note of logits of any shape on reals, once per (micro-)batch."""
        self.signs = self.signs + real_logits.detach().sign().sum(dtype=torch.float32)
        self.count += real_logits.numel()

    def after_step(self, batch: int) -> float:
        """After every iteration of `batch` images; returns p."""
        self.iterations += 1
        if self.iterations % self.INTERVAL == 0 and self.count:
            excess = float(self.signs) / self.count - self.target
            direction = (excess > 0) - (excess < 0)
            p = self.pipeline.p + direction * batch * self.INTERVAL / (self.ada_kimg * 1000)
            self.pipeline.p = min(max(p, 0.0), self.ada_max)
            self.signs, self.count = 0.0, 0
        return self.pipeline.p

    def state_dict(self) -> dict[str, Any]:
        """p and what was observed since it last changed."""
        return {"p": self.pipeline.p, "signs": float(self.signs), "count": self.count, "iterations": self.iterations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        self.pipeline.p, self.signs = state["p"], state["signs"]
        self.count, self.iterations = state["count"], state["iterations"]
