"""Inversion: latents or conditions whose image is as near as possible to a given one (DISP, image inversion).

Every image is optimised for itself: losses are summed over a batch, Adam works value by value, and what is drawn at
random depends on the image's own seed, so that batches don't matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from training.inversion_losses import Distance, Loss
from training.inversion_spaces import InversionSpace, Variables
from training.loader import to_float, to_uint8

Track = Callable[[int], None]  # called with the number of images after each step


@dataclass(frozen=True)
class Inversion:
    """Results for N images, on the CPU.

    variables  the best ones found, by name ``[N, …]``
    seeds      of each image
    first, img  the image at the start, and the best one, uint8 ``[N, C, H, W]``
    losses     before each step and after the last one, ``[steps + 1, N]``
    seconds    that it took
    """

    variables: Variables
    seeds: list[int]
    first: torch.Tensor
    img: torch.Tensor
    losses: torch.Tensor
    seconds: float


def invert(space: InversionSpace, img_u8: torch.Tensor, candidates: Sequence[Sequence[int]], loss: Loss, *,
           steps: int, lr: float | None = None, batch_size: int = 16, track: Track = lambda count: None) -> Inversion:
    """Adam (betas 0.9, 0.999) on the variables of `space` for `steps` steps; of all steps the best one counts.

    img_u8: images uint8 ``[N, C, H, W]`` of the network's size. candidates: seeds of each image, of which the one is
    taken whose start has the lowest loss. lr: None = the space's.
    """
    assert len(img_u8) == len(candidates) > 0
    started = time.monotonic()
    parts: list[Inversion] = []
    for first in range(0, len(img_u8), batch_size):
        rows = slice(first, first + batch_size)
        target = to_float(img_u8[rows].to(space.gan.device))
        distance = loss(target)
        seeds = choose_seeds(space, target, candidates[rows], distance)
        parts.append(_invert_batch(space, target, seeds, distance, steps, space.lr if lr is None else lr, track))
    return Inversion(
        {name: torch.cat([part.variables[name] for part in parts]) for name in parts[0].variables},
        [seed for part in parts for seed in part.seeds], torch.cat([part.first for part in parts]),
        torch.cat([part.img for part in parts]), torch.cat([part.losses for part in parts], dim=1),
        time.monotonic() - started)


@torch.no_grad()
def choose_seeds(space: InversionSpace, target: torch.Tensor, candidates: Sequence[Sequence[int]],
                 distance: Distance) -> list[int]:
    """The seed of each image, among its candidates (as many for each), at which the inversion starts best."""
    if len(candidates[0]) == 1:
        return [own[0] for own in candidates]
    found = []
    for tried in zip(*candidates, strict=True):
        found.append(distance(space.decode(space.start(target, tried), tried)))
    best = torch.stack(found).argmin(0).tolist()
    return [own[k] for own, k in zip(candidates, best, strict=True)]


def _invert_batch(space: InversionSpace, target: torch.Tensor, seeds: list[int], distance: Distance,
                  steps: int, lr: float, track: Track) -> Inversion:
    with torch.no_grad():
        variables = {name: value.detach().clone() for name, value in space.start(target, seeds).items()}
    for value in variables.values():
        value.requires_grad_(True)
    optimizer = torch.optim.Adam(list(variables.values()), lr=lr)
    best = {name: value.detach().clone() for name, value in variables.items()}
    lowest = torch.full((len(target),), float("inf"), device=target.device)
    losses, first, img = [], torch.empty(0), torch.empty(0)
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps):
            made = space.decode(variables, seeds)
            values = distance(made)
        shown = to_uint8(made.detach())
        better = values.detach() < lowest
        if step == 0:
            first, img = shown, shown.clone()
        img[better] = shown[better]
        for name, value in variables.items():
            best[name][better] = value.detach()[better]
        lowest = torch.minimum(lowest, values.detach())
        losses.append(values.detach().cpu())
        if step < steps:
            optimizer.zero_grad(set_to_none=True)
            values.sum().backward()
            optimizer.step()
        track(len(target))
    return Inversion({name: value.cpu() for name, value in best.items()}, seeds, first.cpu(), img.cpu(),
                     torch.stack(losses), 0.0)
