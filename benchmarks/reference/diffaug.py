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
    size = img.shape[2:]
    places = []
    for side in size:
        far = int(side * SHIFT + 0.5)
        shift = torch.randint(-far, far + 1, (len(img), 1), generator=generator).to(img.device)
        # Of the image with a margin of one zero, where everything beyond it is.
        places.append((torch.arange(side, device=img.device) - shift + 1).clamp(0, side + 1))
    images = torch.arange(len(img), device=img.device)[:, None, None]
    padded = F.pad(img, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    return padded[images, places[0][:, :, None], places[1][:, None, :]].permute(0, 3, 1, 2)


def cutout(img: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A rectangle of a fifth of the side, partly outside perhaps, is set to zero."""
    inside = []
    for side in img.shape[2:]:
        cut = int(side * CUT + 0.5)
        start = torch.randint(0, side + 1 - cut % 2, (len(img), 1), generator=generator).to(img.device) - cut // 2
        place = torch.arange(side, device=img.device)
        inside.append((place >= start) & (place < start + cut))
    return img * (~(inside[0][:, :, None] & inside[1][:, None, :]))[:, None].to(img)
