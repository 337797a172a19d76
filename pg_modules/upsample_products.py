"""Nearest ×2 and then a 3×3 convolution as matrix products of sums, 9 or 6¼ of them per input pixel in place of 36.

Along one axis, with zeros outside, the enlarged row x₀ x₀ x₁ x₁ … and the kernel (w₀, w₁, w₂) give around xᵢ, with
s = w₀ + w₁ + w₂,

    y₂ᵢ₋₁ = (w₀ + w₁) xᵢ₋₁ + w₂ xᵢ = (w₀ + w₁) (xᵢ₋₁ − xᵢ) + s xᵢ
    y₂ᵢ   = w₀ xᵢ₋₁ + (w₁ + w₂) xᵢ =        w₀ (xᵢ₋₁ − xᵢ) + s xᵢ
    y₂ᵢ₊₁ = (w₀ + w₁) xᵢ + w₂ xᵢ₊₁ =        w₂ (xᵢ₊₁ − xᵢ) + s xᵢ
    y₂ᵢ₊₂ = w₀ xᵢ + (w₁ + w₂) xᵢ₊₁ = (w₁ + w₂) (xᵢ₊₁ − xᵢ) + s xᵢ

in the manner of Winograd's minimal filtering (1980). With step 1, the two in the middle are taken around every pixel:
two outputs from three products. With step 2, all four around every other pixel: four outputs from five products, but
more kernels. On rows and columns that is 3² products for 2² outputs, or 5² for 4². Of a map with sides H, W, step 2
takes (H/2 + 1) (W/2 + 1) centres, so that small maps gain nothing by it.

The gradients are those of the same products, in the transposed order, and as many. Nothing is approximated; rounding
errors are 1.3 times those of the other forms in float32, twice in bfloat16.

Maps are handled with the channels last, ``[N, H, W, C]``, so that every sum runs over neighbours in memory, and in
strips, so that what lies between two steps stays in the cache.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch

from pg_modules.strips import Strip, add_product, strips, with_zeros

PIXELS = 8192  # of the input that are worked on at once
BLOCK = 1 << 15  # weights that are worked on at once

# The kernels of an axis from its three taps; the first ones go with xᵢ₋₁ − xᵢ, the middle one with xᵢ, the last ones
# with xᵢ₊₁ − xᵢ. On the CPU whatever the default device is.
_KERNELS = {
    1: torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]], device="cpu"),
    2: torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]],
                    device="cpu"),
}
Table = list[list[torch.Tensor]]  # by the input terms of rows and of columns: xᵢ₋₁ − xᵢ, xᵢ, xᵢ₊₁ − xᵢ


class Products:
    """The convolution of maps ``[N, H, W, in]`` with one weight ``[out, in, 3, 3]``; products in the type `dtype`.

    step: 1 or 2, see above.
    """

    def __init__(self, size: tuple[int, int], weight: torch.Tensor, dtype: torch.dtype, step: int) -> None:
        self.size, self.weight, self.dtype, self.step = size, weight, dtype, step
        self.out = len(weight)
        self.counts = (step, 1, step)  # kernels of each input term of an axis
        self.centres = size if step == 1 else (size[0] // 2 + 1, size[1] // 2 + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, H, W, in]`` to ``[N, 2H, 2W, out]``."""
        step, kernels = self.step, self._tables(self._kernels())
        y = x.new_empty(len(x), 2 * self.size[0], 2 * self.size[1], self.out)
        for strip in self._strips(len(x)):
            terms, parts = self._input_terms(x, strip), []
            for u, rows in enumerate(self.counts):
                row = [(terms[u][v] @ kernels[u][v].t()).view(-1, rows, columns, self.out)
                       for v, columns in enumerate(self.counts)]
                row[0] += row[1]
                row[2] += row[1]
                parts.append([part.view(-1, strip.bottom - strip.top, self.centres[1], *part.shape[1:])
                              for part in row])
            for a in range(2 * step):
                of_rows, own_rows = _places(2 * step * strip.top + 1 - step + a, 2 * step, y.shape[1],
                                            strip.bottom - strip.top)
                for b in range(2 * step):
                    of_columns, own = _places(1 - step + b, 2 * step, y.shape[2], self.centres[1])
                    u, v = 2 * (a // step), 2 * (b // step)
                    torch.add(parts[u][v][:, own_rows, own, a % step, b % step],
                              parts[1][v][:, own_rows, own, 0, b % step], out=y[strip.images, of_rows, of_columns])
        return y

    def backward(self, x: torch.Tensor, grad: torch.Tensor, needs_x: bool,
                 needs_weight: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The gradients of x ``[N, H, W, in]`` and of the weight, where needed, from that of the output."""
        step, (height, width) = self.step, self.size
        grad_x = x.new_zeros(len(x), height + 1 + step, width + 1 + step, x.shape[3]) if needs_x else None
        kernels = self._tables(self._kernels()) if needs_x else []
        of_kernels = self.weight.new_zeros((2 * step + 1) ** 2, *self.weight.shape[:2]) if needs_weight else None
        totals = [] if of_kernels is None else self._tables(of_kernels)
        for strip in self._strips(len(x)):
            terms = self._gradient_terms(grad, strip)
            if needs_weight:
                for own, theirs, total in zip(_flat(terms), _flat(self._input_terms(x, strip)), _flat(totals),
                                              strict=True):
                    add_product(total, own.t(), theirs)
            if grad_x is not None:
                shape = (-1, strip.bottom - strip.top, self.centres[1], x.shape[3])
                products = [[(terms[u][v] @ kernels[u][v]).view(shape) for v in range(3)] for u in range(3)]
                self._scatter(products, grad_x, strip)
        own_x = None if grad_x is None else grad_x[:, 1:height + 1, 1:width + 1].contiguous()
        return own_x, None if of_kernels is None else self._taps(of_kernels)

    def _strips(self, n: int) -> Iterator[Strip]:
        return strips(n, self.centres, PIXELS // self.step**2)

    # Weights.

    @functools.cached_property
    def _both(self) -> torch.Tensor:
        """What makes the kernels of both axes of nine taps, in the order of `_tables`: ``[(2 step + 1)², 9]``."""
        axis = _KERNELS[self.step]
        edges = [0, self.step, self.step + 1, 2 * self.step + 1]
        groups = [axis[start:end] for start, end in itertools.pairwise(edges)]
        return torch.cat([torch.kron(rows, columns) for rows in groups for columns in groups]).to(self.weight)

    def _kernels(self) -> torch.Tensor:
        """``[(2 step + 1)², out, in]``; the sums are in the type of the weight."""
        taps = self.weight.reshape(-1, 9)
        kernels = taps.new_empty(len(self._both), len(taps), dtype=self.dtype)
        for start in range(0, len(taps), BLOCK):
            kernels[:, start:start + BLOCK] = self._both @ taps[start:start + BLOCK].t()
        return kernels.view(-1, *self.weight.shape[:2])

    def _taps(self, of_kernels: torch.Tensor) -> torch.Tensor:
        """The gradient of the weight from those of its kernels."""
        kernels = of_kernels.view(len(of_kernels), -1)
        taps = kernels.new_empty(kernels.shape[1], 9)
        for start in range(0, len(taps), BLOCK):
            torch.mm(kernels[:, start:start + BLOCK].t(), self._both, out=taps[start:start + BLOCK])
        return taps.view_as(self.weight)

    def _tables(self, kernels: torch.Tensor) -> Table:
        """The kernels of each pair of input terms, one above the other: ``[rows · columns · out, in]``."""
        sizes = [rows * columns for rows in self.counts for columns in self.counts]
        parts = [part.flatten(0, 1) for part in kernels.split(sizes)]
        return [parts[0:3], parts[3:6], parts[6:9]]

    # Maps.

    def _input_terms(self, x: torch.Tensor, strip: Strip) -> Table:
        """xᵢ₋₁ − xᵢ, xᵢ, xᵢ₊₁ − xᵢ by rows and columns, ``[centres, in]`` each."""
        step, rows, columns = self.step, strip.bottom - strip.top, self.centres[1]
        first, count = step * strip.top - 1, step * (columns - 1) + 3
        part = with_zeros(x[strip.images], first, first + step * (rows - 1) + 3, 1, count)
        before, own, after = (part[:, k:k + step * (rows - 1) + 1:step] for k in range(3))
        terms: Table = []
        for row in (before - own, own, after - own):
            left, middle, right = (row[:, :, k:k + step * (columns - 1) + 1:step] for k in range(3))
            terms.append([term.reshape(-1, x.shape[3]) for term in (left - middle, middle, right - middle)])
        return terms

    def _gradient_terms(self, grad: torch.Tensor, strip: Strip) -> Table:
        """Those of the products, ``[centres, rows · columns · out]`` each: the outputs' own, and their sums."""
        step, rows, columns = self.step, strip.bottom - strip.top, self.centres[1]
        first, count = 2 * step * strip.top + 1 - step, 2 * step * columns
        part = with_zeros(grad[strip.images], first, first + 2 * step * rows, step - 1, count)
        outputs = part.reshape(-1, rows, 2, step, columns, 2, step, self.out).permute(2, 5, 0, 1, 4, 3, 6, 7)
        terms: Table = []
        for of_rows in outputs:
            left, right = (side.contiguous() for side in of_rows)  # [M, rows, columns, step, step, out]
            terms.append([left, _total(left, right, 4), right])
        terms.insert(1, [_total(above, below, 3) for above, below in zip(*terms, strict=True)])
        centres = terms[0][0].shape[:3].numel()
        return [[term.view(centres, -1) for term in row] for row in terms]

    def _scatter(self, products: Table, grad_x: torch.Tensor, strip: Strip) -> None:
        """Adds the gradients of input terms to those of their pixels, which have a margin."""
        step, rows, columns = self.step, strip.bottom - strip.top, self.centres[1]
        for row in products:
            row[1].sub_(row[0]).sub_(row[2])
        for above, own, below in zip(*products, strict=True):
            own.sub_(above).sub_(below)
        for u, row in enumerate(products):
            first = step * strip.top + u
            for v, part in enumerate(row):
                grad_x[strip.images, first:first + step * (rows - 1) + 1:step,
                       v:v + step * (columns - 1) + 1:step].add_(part)


def _flat(table: Table) -> list[torch.Tensor]:
    return [entry for row in table for entry in row]


def _total(one: torch.Tensor, other: torch.Tensor, dim: int) -> torch.Tensor:
    """The sum over `dim` of both, which stays as a dimension of size 1."""
    return functools.reduce(torch.add, [*one.split(1, dim), *other.split(1, dim)])


def _places(first: int, stride: int, end: int, count: int) -> tuple[slice, slice]:
    """Of positions first + stride · t for t below `count`: those in 0 to `end`, as a slice, and the slice of t."""
    start = -(first // stride) if first < 0 else 0
    stop = min(count, (end - 1 - first) // stride + 1)
    return slice(first + stride * start, max(first + stride * (stop - 1) + 1, 0), stride), slice(start, stop)
