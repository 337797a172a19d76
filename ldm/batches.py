"""What a step of latent diffusion trains on: the split, the order of latents, the times, the held-out test."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from dnnlib import UserError
from ldm.ddim import add_noise
from torch_utils.rng import generator

TIME_SAMPLING = ("uniform", "antithetic", "stratified")


@dataclass(frozen=True)
class LatentData:
    """Latents of a data set under one generator's encoder.

    latents      float32 ``[M, C, H, W]`` on the CPU, flips included
    image_index  int64 ``[M]``: the image that each came from; a flip has its image's number
    info         ``gan_hash``, ``space`` (``f``, ``w`` or ``s``), ``normalize`` (`ldm.prior.NORMALIZATIONS`),
                 ``network``, ``dataset``; JSON types only
    labels       int64 ``[M]``: classes that the model is to be told of, or None
    """

    latents: torch.Tensor
    image_index: torch.Tensor
    info: dict[str, Any]
    labels: torch.Tensor | None = None


def split_images(image_index: torch.Tensor, holdout: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of training and of held-out latents: a share `holdout` of the images, flips with their image."""
    images = image_index.unique()
    count = round(len(images) * holdout)
    if len(images) < 4:
        raise UserError(f"--data has {len(images)} images; a latent diffusion model needs at least 4.")
    count = min(max(count, 1), len(images) - 2)
    held = images[torch.randperm(len(images), generator=generator(seed, "ldm-split"))[:count]]
    is_held = torch.isin(image_index, held)
    return (~is_held).nonzero().flatten(), is_held.nonzero().flatten()


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=generator(seed, "ldm-order", epoch))


def batch_indices(count: int, cur_nimg: int, batch: int, seed: int) -> torch.Tensor:
    """Which of `count` latents form the batch after `cur_nimg`: int64 ``[batch]``; every epoch is shuffled anew."""
    parts: list[torch.Tensor] = []
    position, end = cur_nimg, cur_nimg + batch
    while position < end:
        epoch, offset = divmod(position, count)
        part = _order(count, seed, epoch)[offset:offset + end - position]
        parts.append(part)
        position += len(part)
    return torch.cat(parts)


def draw_times(batch: int, num_steps: int, mode: str, rng: torch.Generator) -> torch.Tensor:
    """Times int64 ``[batch]``, each uniform over 0 .. T-1.

    ``uniform``: independent; ``antithetic``: t and T-1-t in pairs (the DDIM code); ``stratified``: one in each
    of `batch` equal parts of the range, under a common shift (Kingma et al. 2021), which makes the loss of a
    batch vary least.
    """
    assert mode in TIME_SAMPLING, mode
    if mode == "uniform":
        return torch.randint(num_steps, (batch,), generator=rng)
    if mode == "antithetic":
        half = torch.randint(num_steps, (batch // 2 + 1,), generator=rng)
        return torch.cat([half, num_steps - 1 - half])[:batch]
    places = (torch.arange(batch, dtype=torch.float64) + torch.rand(1, dtype=torch.float64, generator=rng)) / batch
    return (places * num_steps).long().clamp(max=num_steps - 1)


@dataclass(frozen=True)
class NoisySet:
    """A fixed test: noisy latents `x` ``[S, C, H, W]``, times `t` ``[S]``, and the noise `eps` to be estimated.

    `y` ``[S]``: classes, or None.
    """

    x: torch.Tensor
    t: torch.Tensor
    eps: torch.Tensor
    y: torch.Tensor | None


def noisy_set(latents: torch.Tensor, labels: torch.Tensor | None, alpha_bar: torch.Tensor, size: int,
              seed: int) -> NoisySet:
    """`size` noisy versions of the whitened `latents` ``[M, C, H, W]``, times spread evenly over the schedule.

    labels: classes ``[M]`` or None.
    """
    rng = generator(seed, "ldm-heldout")
    order = torch.randperm(len(latents), generator=rng)
    rows = order[torch.arange(size) % len(latents)]
    x_0 = latents[rows]
    t = ((torch.arange(size, dtype=torch.float64) + 0.5) / size * len(alpha_bar)).long()
    eps = torch.randn(x_0.shape, generator=rng)
    return NoisySet(add_noise(x_0, eps, alpha_bar[t]), t, eps, None if labels is None else labels[rows])
