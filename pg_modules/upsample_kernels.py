"""`pg_modules.upsample_products` with its sums from `pg_modules.kernels`, one pass each."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from pg_modules import kernels
from pg_modules.upsample_products import Products

AT_ONCE = 4096  # outputs of centres, 4 step² each

# Places of `Products._tables`, [rows, columns], that have as many kernels as each other: of two differences, of one.
_CORNERS, _SIDES, _CENTRE = (0, 2, 6, 8), (1, 3, 5, 7), (4,)


class KernelProducts(Products):
    """`Products` of contiguous maps in the type of the weight, float32 or float64, where kernels are usable.

    Products of equally many kernels are made together. All tensors of terms and kernels are three, of corners, sides
    and the centre.
    """

    def __init__(self, size: tuple[int, int], weight: torch.Tensor, step: int) -> None:
        super().__init__(size, weight, weight.dtype, step)
        self.counts_of = (step**2, step, 1)  # kernels of a corner, a side, the centre

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, H, W, in]`` to ``[N, 2H, 2W, out]``."""
        of_terms = self._by_place(kernels.kernels_of_taps(self._matrix, self.weight))
        y = x.new_empty(len(x), 2 * self.size[0], 2 * self.size[1], self.out)
        for first, end in self._centres(x):
            products = [terms @ kernel.transpose(1, 2)
                        for terms, kernel in zip(self._inputs(x, first, end), of_terms, strict=True)]
            self._call("upsample_outputs", products, y, first, end)
        return y

    def backward(self, x: torch.Tensor, grad: torch.Tensor, needs_x: bool,
                 needs_weight: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The gradients of x ``[N, H, W, in]`` and of the weight, where needed, from that of the output."""
        grad_x = torch.zeros_like(x) if needs_x else None
        of_terms = self._by_place(kernels.kernels_of_taps(self._matrix, self.weight)) if needs_x else []
        totals = self.weight.new_zeros(len(self._matrix), *self.weight.shape[:2]) if needs_weight else None
        for first, end in self._centres(x):
            terms = [x.new_empty(len(places), end - first, count * self.out) for places, count in
                     zip((_CORNERS, _SIDES, _CENTRE), self.counts_of, strict=True)]
            self._call("upsample_gradients", terms, grad, first, end)
            if totals is not None:
                for total, own, theirs in zip(self._by_place(totals), terms, self._inputs(x, first, end), strict=True):
                    total.baddbmm_(own.transpose(1, 2), theirs)
            if grad_x is not None:
                products = [own @ kernel for own, kernel in zip(terms, of_terms, strict=True)]
                self._call("upsample_scatter", products, grad_x, first, end)
        return grad_x, None if totals is None else kernels.taps_of_kernels(self._matrix, totals)

    @functools.cached_property
    def _matrix(self) -> torch.Tensor:
        """What makes the kernels of nine taps, ``[(2 step + 1)², 9]``: corners, then sides, then the centre."""
        sizes = [rows * columns for rows in self.counts for columns in self.counts]
        parts = self._both.split(sizes)
        return torch.cat([parts[place] for place in _CORNERS + _SIDES + _CENTRE])

    def _by_place(self, of_kernels: torch.Tensor) -> list[torch.Tensor]:
        """Of kernels ``[(2 step + 1)², out, in]`` those of each term together, ``[4 or 1, count · out, in]``."""
        parts = of_kernels.split([4 * self.counts_of[0], 4 * self.counts_of[1], 1])
        return [part.view(-1, count * part.shape[1], part.shape[2])
                for part, count in zip(parts, self.counts_of, strict=True)]

    def _inputs(self, x: torch.Tensor, first: int, end: int) -> list[torch.Tensor]:
        """x[i-1] - x[i], x[i], x[i+1] - x[i] of rows and columns, ``[4 or 1, centres, in]``."""
        terms = [x.new_empty(len(places), end - first, x.shape[3]) for places in (_CORNERS, _SIDES, _CENTRE)]
        self._call("upsample_inputs", terms, x, first, end)
        return terms

    def _call(self, name: str, terms: list[torch.Tensor], maps: torch.Tensor, first: int, end: int) -> None:
        corners, sides, centre = (list(part.unbind()) for part in terms)
        table = [corners[0], sides[0], corners[1], sides[1], centre[0], sides[2], corners[2], sides[3], corners[3]]
        kernels.call(name, table, maps, self.step, first, end, *self.size, maps.shape[3])

    def _centres(self, x: torch.Tensor) -> Iterator[tuple[int, int]]:
        """Ranges of them, counted over rows and columns of all images."""
        total, at_once = len(x) * self.centres[0] * self.centres[1], AT_ONCE // self.step**2
        for first in range(0, total, at_once):
            yield first, min(first + at_once, total)
