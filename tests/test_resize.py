"""Resizing by products of matrices is PyTorch's resizing; eigenvectors of covariances of few samples are found."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pg_modules.resize import averaged, bilinear, by_products
from torch_utils.eigen import eigh


@pytest.mark.parametrize(("size", "align_corners", "antialias"), [
    ((8, 10), True, False), ((8, 10), False, False), ((7, 13), True, False), ((2, 3), False, True),
    ((4, 5), False, True),
])
def test_products_are_the_interpolation(size: tuple[int, int], align_corners: bool, antialias: bool) -> None:
    """Forward and backward, in float64; and what a CPU does is PyTorch's own."""
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    expected = F.interpolate(x, size, mode="bilinear", align_corners=align_corners, antialias=antialias)
    found = by_products(x, size, align_corners, antialias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(expected)
    theirs, ours = (torch.autograd.grad(y, x, gradient)[0] for y in (expected, found))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.equal(bilinear(x, size, align_corners, antialias), expected)


def test_products_of_half_types_add_up_in_float32() -> None:
    x = torch.randn(1, 2, 16, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = by_products(x, (32, 32), True, False)
    assert found.dtype == torch.bfloat16
    exact = F.interpolate(x.float(), (32, 32), mode="bilinear", align_corners=True)
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("size", [(4, 4), (2, 4), (1, 1), (3, 5), (8, 8)])
def test_averages_are_those_of_adaptive_pooling(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(averaged(x, size), F.adaptive_avg_pool2d(x, size), rtol=1e-12, atol=1e-12)


def test_eigenvectors_of_few_samples() -> None:
    """A covariance of 20 samples in 300 dimensions: as of all vectors, the largest first."""
    rows = torch.randn(20, 300, dtype=torch.float64)
    rows[10:] = rows[:10]  # and half of them are copies
    covariance = rows.T @ rows
    values, vectors = eigh(covariance, largest=7)
    assert values.shape == (7,)
    assert bool((values.diff() >= 0).all())
    torch.testing.assert_close(covariance @ vectors, vectors * values, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(7, dtype=torch.float64), rtol=1e-8, atol=1e-8)
    every, of_all = eigh(covariance)
    torch.testing.assert_close(every[-7:], values, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(of_all * every @ of_all.T, covariance, rtol=1e-8, atol=1e-8)
    assert eigh(torch.eye(3))[0].dtype == torch.float64
