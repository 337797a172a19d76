"""DiffAug (Zhao et al. 2020) with Projected GAN's policy: colour, translation, cutout; image by image."""

from __future__ import annotations

import torch
import torch.nn.functional as F

SHIFT, CUT = 0.125, 0.2  # of the side


def diffaug(img: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``[N, C, H, W]`` augmented; every random number comes from `generator`, in the order of the published list."""
    return cutout(translation(color(img, generator), generator), generator)


def color(img: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness ± 0.5, saturation × 0 to 2, contrast × 0.5 to 1.5."""
    draw = [torch.rand(len(img), 1, 1, 1, generator=generator).to(img) for _ in range(3)]
    img = img + (draw[0] - 0.5)
    grey = img.mean(dim=1, keepdim=True)
    img = (img - grey) * (draw[1] * 2) + grey
    mean = img.mean(dim=(1, 2, 3), keepdim=True)
    return (img - mean) * (draw[2] + 0.5) + mean


def translation(img: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A shift by up to an eighth of the side, zeros behind it."""
    height, width = img.shape[2:]
    down, right = (torch.randint(-far, far + 1, (len(img), 1), generator=generator).flatten().tolist()
                   for far in (int(height * SHIFT + 0.5), int(width * SHIFT + 0.5)))
    # Negative margins crop.
    return torch.stack([F.pad(one, (x, -x, y, -y)) for one, y, x in zip(img, down, right, strict=True)])


def cutout(img: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A rectangle of a fifth of the side, partly outside perhaps, is set to zero."""
    sides = img.shape[2:]
    cuts = [int(side * CUT + 0.5) for side in sides]
    starts = [torch.randint(0, side + 1 - cut % 2, (len(img), 1), generator=generator).flatten() - cut // 2
              for side, cut in zip(sides, cuts, strict=True)]
    mask = torch.ones(len(img), 1, *sides).to(img)
    for one, top, left in zip(mask, *(start.tolist() for start in starts), strict=True):
        one[:, max(top, 0):top + cuts[0], max(left, 0):left + cuts[1]] = 0
    return img * mask
