"""Affine warp of images that can be differentiated twice with respect to the image (Karras et al. 2020a, appendix B).

R1 regularisation needs gradients of gradients, which `torch.nn.functional.grid_sample` doesn't have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from torch_utils.device import sent_like

# Low-pass filter of the wavelet sym6 (Daubechies 1992). It is orthogonal to its even shifts, so that upsampling and
# downsampling with it undo each other: images that aren't moved, or by whole pixels, aren't blurred.
SYM6 = (0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
        0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
        0.0017677118642428036, -0.007800708325034148)
CENTRE = 5  # tap around which the filter is nearly symmetric; flips and turns move pictures by a tenth of a pixel
MARGIN = 6  # pixels that the filters of both directions reach over the border


class _Gather(torch.autograd.Function):
    """Bilinear look-up, linear in the image; its derivative is `_Spread`. The grid gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = x.shape
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Spread.apply(grad_outputs[0], ctx.saved_tensors[0], ctx.shape), None


class _Spread(torch.autograd.Function):
    """The transpose of `_Gather`, whose own derivative is `_Gather` again."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, grid: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        ctx.save_for_backward(grid)
        # The image itself only matters for the gradient of the grid, which isn't asked for.
        unused = y.new_zeros(()).expand(shape)
        bilinear, zeros, align_corners = 0, 0, True
        return torch.ops.aten.grid_sampler_2d_backward(y, unused, grid, bilinear, zeros, align_corners,
                                                       (True, False))[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Gather.apply(grad_outputs[0], ctx.saved_tensors[0]), None, None


def _taps(x: torch.Tensor, gain: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The filter along rows and along columns, as kernels."""
    taps = torch.tensor(SYM6, dtype=x.dtype, device=x.device) * gain
    return taps.view(1, 1, 1, -1), taps.view(1, 1, -1, 1)


def upsample(x: torch.Tensor) -> torch.Tensor:
    """``[N, C, H, W]`` to ``[N, C, 2H + 12, 2W + 12]``; sample j lies at pixel (j − 6) / 2."""
    n, c, height, width = x.shape
    x = F.pad(x, (MARGIN,) * 4, mode="reflect").reshape(n * c, 1, height + 2 * MARGIN, width + 2 * MARGIN)
    along_rows, along_columns = _taps(x, 2**0.5)
    crop = CENTRE + MARGIN
    x = F.conv_transpose2d(x, along_rows, stride=(1, 2), padding=(0, crop))
    x = F.conv_transpose2d(x, along_columns, stride=(2, 1), padding=(crop, 0))
    return x.view(n, c, *x.shape[2:])


def downsample(x: torch.Tensor) -> torch.Tensor:
    """``[N, C, 2H + 10, 2W + 10]``, whose sample j lies at pixel (j − 5) / 2, to ``[N, C, H, W]``."""
    n, c, height, width = x.shape
    along_rows, along_columns = _taps(x, 0.5**0.5)
    x = F.conv2d(x.reshape(n * c, 1, height, width), along_columns, stride=(2, 1))
    x = F.conv2d(x, along_rows, stride=(1, 2))
    return x.view(n, c, *x.shape[2:])


def _fold(position: torch.Tensor, size: int) -> torch.Tensor:
    """Positions in half pixels, mirrored at the outermost of `size` pixels where they leave what `upsample` made."""
    span = 2 * (size - 1)
    folded = span - (position.remainder(2 * span) - span).abs()
    # As far as `downsample` reaches for an image that isn't moved, the filter itself has seen mirrored pixels; that is
    # exact, whereas mirroring what it made isn't quite, since it isn't quite symmetric.
    outside = (position < -CENTRE - 0.5) | (position > span + len(SYM6) - CENTRE - 0.5)
    return torch.where(outside, folded, position)


def warp(x: torch.Tensor, undo: torch.Tensor) -> torch.Tensor:
    """Images ``[N, C, H, W]`` moved by affine maps: up to twice the size, bilinear look-up there, and down again.

    ``undo [N, 3, 3]``: from (column, row, 1) of the result, in pixels from the centre, to that of the source. What lies
    outside of the source is its mirror image, repeated without end. Images need more than `MARGIN` pixels a side.
    """
    n, _, height, width = x.shape
    undo = sent_like(undo, x)
    axes = []
    for size in (width, height):
        samples = torch.arange(2 * size + 2 * CENTRE, device=x.device, dtype=x.dtype)
        axes.append((samples - CENTRE) / 2 - (size - 1) / 2)
    columns, rows = axes[0][None, None, :], axes[1][None, :, None]
    coordinates = []
    for axis, size in ((0, width), (1, height)):
        a, b, shift = (undo[:, axis, k].view(n, 1, 1) for k in range(3))
        position = _fold(2 * (a * columns + b * rows + shift) + (size - 1), size)
        coordinates.append((position + MARGIN) * (2 / (2 * size + 2 * MARGIN - 1)) - 1)
    return downsample(_Gather.apply(upsample(x), torch.stack(coordinates, dim=-1)))
