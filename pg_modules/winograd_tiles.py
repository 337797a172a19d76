"""Winograd's minimal filtering along one axis, with the sums in few operations (Lavin and Gray 2016).

A tile of m outputs y of m + 2 inputs x and the kernel w is y = Aᵀ (G w ∘ Bᵀ x): m + 2 products p in place of 3 m.
With m = 2:

    y₀ = p₀ + p₁ + p₂            p₀ = (x₀ − x₂) w₀        p₁ = (x₁ + x₂) (w₀ + w₁ + w₂) / 2
    y₁ = p₁ − p₂ − p₃            p₃ = (x₁ − x₃) w₂        p₂ = (x₂ − x₁) (w₀ − w₁ + w₂) / 2

With m = 4, from polynomials taken at 0, ±√½, ±√2 and ∞, which round half as much as the usual 0, ±1, ±2 and ∞. Kernels
of points of either sign are scaled so that most factors are powers of two:

    y₀ = p₀ + √2 (p₁ + p₂) + √½ (p₃ + p₄)        p₀ = (x₀ − 2½ x₂ + x₄) w₀
    y₁ =         (p₁ − p₂) +    (p₃ − p₄)        p₁, p₂ = (x₄ − 2 x₂ ± √½ (x₃ − 2 x₁)) (−√2 w₀ ∓ w₁ − √½ w₂) / 3
    y₂ =      √½ (p₁ + p₂) + √2 (p₃ + p₄)        p₃, p₄ = (x₄ − ½ x₂ ± √2 (x₃ − ½ x₁)) (√½ w₀ ± w₁ + √2 w₂) / 3
    y₃ =       ½ (p₁ − p₂) +  2 (p₃ − p₄) + p₅   p₅ = (x₁ − 2½ x₃ + x₅) w₂
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch

Maps = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Axis:
    """What happens along an axis whose tiles have `m` outputs.

    kernels        G, ``[m + 2, 3]``, float64, on the CPU whatever the default device is
    of_inputs      Bᵀ x, the m + 2 other factors, from m + 2 inputs
    outputs        Aᵀ p, m outputs, from m + 2 products, whose memory they take
    of_gradients   from the gradients of m outputs what makes that of w: diag(`scales`) A g
    scales         see above
    at_once        tiles of both axes that are worked on at once
    """

    m: int
    kernels: torch.Tensor
    of_inputs: Callable[[Maps], list[torch.Tensor]]
    outputs: Callable[[Maps], list[torch.Tensor]]
    of_gradients: Callable[[Maps], list[torch.Tensor]]
    scales: torch.Tensor
    at_once: int

    def kernels_of_both(self) -> torch.Tensor:
        """What makes the kernels of both axes of nine taps, ``[(m + 2)², 9]``."""
        return torch.kron(self.kernels, self.kernels)

    def taps_of_both(self) -> torch.Tensor:
        """What makes the gradients of nine taps of those of kernels by `of_gradients`, ``[(m + 2)², 9]``."""
        kernels = self.kernels / self.scales[:, None]
        return torch.kron(kernels, kernels)


def _inputs2(x: Maps) -> list[torch.Tensor]:
    return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


def _outputs2(p: Maps) -> list[torch.Tensor]:
    difference = p[1] - p[2]
    return [p[0].add_(p[1]).add_(p[2]), difference.sub_(p[3])]


def _gradients2(g: Maps) -> list[torch.Tensor]:
    return [g[0], g[0] + g[1], g[0] - g[1], -g[1]]


# Of four outputs: `near` belongs to the points ±√½, `far` to ±√2.

def _both_signs(even: torch.Tensor, odd: torch.Tensor, point: float) -> list[torch.Tensor]:
    return [torch.add(even, odd, alpha=point), torch.sub(even, odd, alpha=point)]


def _inputs4(x: Maps) -> list[torch.Tensor]:
    near = torch.sub(x[4], x[2], alpha=2), torch.sub(x[3], x[1], alpha=2)
    far = torch.sub(x[4], x[2], alpha=0.5), torch.sub(x[3], x[1], alpha=0.5)
    return [torch.sub(x[0], x[2], alpha=2.5).add_(x[4]), *_both_signs(*near, sqrt(0.5)), *_both_signs(*far, sqrt(2)),
            torch.sub(x[5], x[3], alpha=2.5).add_(x[1])]


def _outputs4(p: Maps) -> list[torch.Tensor]:
    near, far = p[1] + p[2], p[3] + p[4]
    near_odd, far_odd = p[1].sub_(p[2]), p[3].sub_(p[4])
    return [p[0].add_(near, alpha=sqrt(2)).add_(far, alpha=sqrt(0.5)), near_odd + far_odd,
            near.mul_(sqrt(0.5)).add_(far, alpha=sqrt(2)), p[5].add_(near_odd, alpha=0.5).add_(far_odd, alpha=2)]


def _gradients4(g: Maps) -> list[torch.Tensor]:
    near = torch.add(g[0], g[2], alpha=0.5), torch.add(g[1], g[3], alpha=0.5)
    far = torch.add(g[0], g[2], alpha=2), torch.add(g[1], g[3], alpha=2)
    return [g[0], *_both_signs(*near, sqrt(0.5)), *_both_signs(*far, sqrt(2)), g[3]]


def _numbers(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.double, device="cpu")


AXES = {
    2: Axis(2, _numbers([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]), _inputs2, _outputs2, _gradients2,
            scales=torch.ones(4, dtype=torch.double, device="cpu"), at_once=1024),
    4: Axis(4, _numbers([[3, 0, 0], [-sqrt(2), -1, -sqrt(0.5)], [-sqrt(2), 1, -sqrt(0.5)], [sqrt(0.5), 1, sqrt(2)],
                         [sqrt(0.5), -1, sqrt(2)], [0, 0, 3]]) / 3, _inputs4, _outputs4, _gradients4,
            scales=_numbers([[1, sqrt(0.5), sqrt(0.5), sqrt(2), sqrt(2), 1]])[0], at_once=512),
}
