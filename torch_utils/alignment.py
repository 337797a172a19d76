"""How alike two pictures are once one is laid over the other: a registration with brightness, then local differences.

Written for copies of an image that were encoded anew, resized, slightly cropped or brightened. A correlation of whole
pictures can't tell those from other pictures of one series (a face in another colour moves it by less than a crop of
3 %), so the score is the worst place of the best fit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

SIDE = 32  # of the thumbnails that are compared
_LIMIT = 0.12  # of scale and shift, in half sides: a crop of about 6 % on each side
_GAIN, _OFFSET = (-0.35, 0.5), 50.0
_STEPS = 3  # on 16x16, and again on 32x32
# Prior of scales, shifts, gain and offset, as standard deviations beside residuals of 3 levels. On 16x16 the offset
# stays near 0: a low gain with a high offset would also explain a figure brightened on white, which stays white.
_COARSE, _FINE = (0.1, 0.1, 0.1, 0.1, 0.3, 0.2), (0.1, 0.1, 0.1, 0.1, 0.3, 20.0)
_NOISE = 3.0
_TO_YCC = ((0.299, 0.587, 0.114), (-0.0845, -0.1655, 0.25), (0.25, -0.2095, -0.0405))  # chroma counts half
_FLOOR = 25.0  # grey levels of contrast added to each picture's own, so that noise on flat ones is no difference
_HOPELESS = 0.65  # similarity on 16x16 up to which a pair is judged by that; of copies all had 0.8 and more


def likeness(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Similarity ``[P]`` (float64) of P pairs of thumbnails, uint8 ``[P, 32, 32, 3]`` each: 1 equal, 0 or less unlike.

    The darker picture's brightness and contrast are fitted to the other's, and the other is shifted and scaled to it,
    by Gauss-Newton steps on the luma. The similarity is 1 - d / (contrast + 25): d is the largest mean difference in
    a cell of an eighth of the side (chroma counts half), contrast the standard deviation, both in grey levels.
    """
    dark, bright = first.double().permute(0, 3, 1, 2), second.double().permute(0, 3, 1, 2)
    # From the darker to the brighter: what clipped at white can be predicted, but not recovered.
    swap = (dark.mean((1, 2, 3)) > bright.mean((1, 2, 3)))[:, None, None, None]
    dark, bright = torch.where(swap, bright, dark), torch.where(swap, dark, bright)
    coarse = F.avg_pool2d(dark, 2), F.avg_pool2d(bright, 2)
    fit = _register(*coarse, torch.zeros(len(dark), 6, dtype=torch.float64), _COARSE)
    result = _score(*coarse, fit)
    hopeful = result > _HOPELESS
    if hopeful.any():
        dark, bright = dark[hopeful], bright[hopeful]
        result[hopeful] = _score(dark, bright, _register(dark, bright, fit[hopeful], _FINE))
    return result


def _luma(images: torch.Tensor) -> torch.Tensor:
    return (images * images.new_tensor(_TO_YCC[0]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _centres(side: int) -> torch.Tensor:
    """Positions of pixel centres in [-1, 1]."""
    return (torch.arange(side, dtype=torch.float64) + 0.5) * 2 / side - 1


def _grid(fit: torch.Tensor, side: int) -> torch.Tensor:
    """Where each pixel looks in the other picture: ``[P, side, side, 2]`` from scales and shifts."""
    x = _centres(side) * (1 + fit[:, 0:1]) + fit[:, 2:3]
    y = _centres(side) * (1 + fit[:, 1:2]) + fit[:, 3:4]
    return torch.stack([x[:, None, :].expand(-1, side, side), y[:, :, None].expand(-1, side, side)], -1)


def _brighten(dark: torch.Tensor, fit: torch.Tensor) -> torch.Tensor:
    return (1 + fit[:, 4, None, None, None]) * dark + fit[:, 5, None, None, None]


def _sample(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _register(dark: torch.Tensor, bright: torch.Tensor, fit: torch.Tensor,
              spread: tuple[float, ...]) -> torch.Tensor:
    """Improves `fit [P, 6]`: scales and shifts in x and y, gain - 1, offset.

    Gauss-Newton with weights 1 / (1 + r^2), which let a part of the picture differ, and a prior at no change.
    """
    side = dark.shape[-1]
    target = _luma(bright)
    slope_x = F.pad(target, (1, 1, 0, 0), mode="replicate")
    slope_y = F.pad(target, (0, 0, 1, 1), mode="replicate")
    maps = torch.cat([target, (slope_x[..., 2:] - slope_x[..., :-2]) * side / 4,
                      (slope_y[..., 2:, :] - slope_y[..., :-2, :]) * side / 4], 1)
    x, y = _centres(side).repeat(side), _centres(side).repeat_interleave(side)
    prior = _NOISE**2 / dark.new_tensor(spread) ** 2
    for _ in range(_STEPS):
        grid = _grid(fit, side)
        seen, dx, dy = _sample(maps, grid).flatten(2).unbind(1)
        lit = _brighten(dark, fit)
        free = ((lit > 0) & (lit < 255)).double()  # a clipped channel no longer follows gain and offset
        residual = seen - _luma(lit.clamp(0, 255)).flatten(1)
        inside = (grid.abs() <= 1).all(-1).flatten(1).double()
        typical = (residual.abs() * inside).sum(1, keepdim=True) / (inside.sum(1, keepdim=True) + 1)
        weight = inside / (1 + (residual / (10 + 2 * typical)) ** 2)
        slopes = torch.stack([dx * x, dy * y, dx, dy, -_luma(dark * free).flatten(1), -_luma(free).flatten(1)], 2)
        weighted = slopes * weight[:, :, None]
        step = torch.linalg.solve(weighted.mT @ slopes + prior.diag(),
                                  (weighted.mT @ residual[:, :, None])[:, :, 0] + prior * fit)
        fit = fit - step
        fit = torch.cat([fit[:, :4].clamp(-_LIMIT, _LIMIT), fit[:, 4:5].clamp(*_GAIN),
                         fit[:, 5:].clamp(-_OFFSET, _OFFSET)], 1)
    return fit


def _score(dark: torch.Tensor, bright: torch.Tensor, fit: torch.Tensor) -> torch.Tensor:
    side = dark.shape[-1]
    grid = _grid(fit, side)
    inside = (grid.abs() <= 1).all(-1)[:, None].double()
    seen = _sample(bright, grid)
    predicted = _brighten(dark, fit).clamp(0, 255)
    difference = torch.einsum("cd,pdhw->pchw", dark.new_tensor(_TO_YCC), predicted - seen) * inside
    # Cells with soft borders: an edge that only became sharper or blurred is no difference.
    difference, inside = (F.avg_pool2d(maps, 3, 1, 1) for maps in (difference, inside))
    cell = side // 8, side // 16  # overlapping, so that no detail is shared out between cells
    share = F.avg_pool2d(inside, *cell).clamp(min=0.5)
    worst = (F.avg_pool2d(difference, *cell) / share).abs().flatten(1).amax(1)
    contrast = seen.flatten(2).std(2).amax(1)
    # A flat picture is no evidence that another flat one is the same, brightened.
    shift = (predicted - dark).abs().mean((1, 2, 3)) - 2 * contrast
    return 1 - torch.maximum(worst, shift) / (contrast + _FLOOR)
