"""Inversion as the metric IvOM asks for it: one procedure for every generator, so that numbers can be compared."""

from __future__ import annotations

from collections.abc import Callable

import torch

from training.inversion import invert
from training.inversion_losses import mean_squared
from training.inversion_spaces import open_space, richest_space
from training.sampling import Gan

STEPS = 200  # as the command's default

# Images uint8 [n, C, H, W] to such images twice: at the start, and found.
InvertImages = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def inverter_of(gan: Gan, sigma: float | None, class_idx: int | None,
                batch_size: int) -> tuple[str, InvertImages]:
    """How images are inverted, in words, and a function that does it in the `richest_space` of `gan`.

    Pixel error, Adam at the space's learning rate, image k with seed k. `UserError`: `open_space`.
    """
    space = open_space(gan, richest_space(gan), sigma=sigma, class_idx=class_idx)

    def invert_images(img_u8: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = invert(space, img_u8, [[k] for k in range(len(img_u8))], mean_squared, steps=STEPS,
                       batch_size=batch_size)
        return found.first, found.img

    start = "the encoder's condition" if gan.uses_latents else "a random z" if space.seeded else "the mean w"
    return f"{STEPS} steps of Adam ({space.lr:g}) in {space.name} from {start}", invert_images
