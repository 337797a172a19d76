"""Step 2 of `pg_modules.upsample_products` with its sums from `pg_modules.kernels`, one pass each."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pg_modules import kernels
from pg_modules.strips import add_product, product
from pg_modules.upsample_products import Products, flat

AT_ONCE = 1024  # centres, of sixteen outputs each


class KernelProducts(Products):
    """`Products` of contiguous maps in the type of the weight, float32 or float64, where kernels are usable; step 2."""

    def __init__(self, size: tuple[int, int], weight: torch.Tensor) -> None:
        super().__init__(size, weight, weight.dtype, step=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, H, W, in]`` to ``[N, 2H, 2W, out]``."""
        of_terms = flat(self._tables(self._kernels()))
        y = x.new_empty(len(x), 2 * self.size[0], 2 * self.size[1], self.out)
        for first, end in self._centres(x):
            products = [product(term, kernel) for term, kernel in zip(self._inputs(x, first, end), of_terms, strict=True)]
            kernels.call("upsample_outputs", products, y, first, end, *self.size, self.out)
        return y

    def backward(self, x: torch.Tensor, grad: torch.Tensor, needs_x: bool,
                 needs_weight: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The gradients of x ``[N, H, W, in]`` and of the weight, where needed, from that of the output."""
        grad_x = torch.zeros_like(x) if needs_x else None
        of_terms = flat(self._tables(self._kernels())) if needs_x else []
        of_kernels = self.weight.new_zeros(25, *self.weight.shape[:2]) if needs_weight else None
        totals = [] if of_kernels is None else flat(self._tables(of_kernels))
        for first, end in self._centres(x):
            terms = [x.new_empty(end - first, rows * columns * self.out) for rows in self.counts for columns in self.counts]
            kernels.call("upsample_gradients", grad, terms, first, end, *self.size, self.out)
            if needs_weight:
                for total, own, theirs in zip(totals, terms, self._inputs(x, first, end), strict=True):
                    add_product(total, own.t(), theirs)
            if grad_x is not None:
                products = [term @ kernel for term, kernel in zip(terms, of_terms, strict=True)]
                kernels.call("upsample_scatter", products, grad_x, first, end, *self.size, x.shape[3])
        return grad_x, None if of_kernels is None else self._taps(of_kernels)

    def _inputs(self, x: torch.Tensor, first: int, end: int) -> list[torch.Tensor]:
        terms = [x.new_empty(end - first, x.shape[3]) for _ in range(9)]
        kernels.call("upsample_inputs", x, terms, first, end, *self.size, x.shape[3])
        return terms

    def _centres(self, x: torch.Tensor) -> Iterator[tuple[int, int]]:
        """Ranges of them, counted over rows and columns of all images."""
        total = len(x) * self.centres[0] * self.centres[1]
        for first in range(0, total, AT_ONCE):
            yield first, min(first + AT_ONCE, total)
