"""Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, FID)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

_BLOCK = 4096
_STEP = 128  # rows of a triangular product at a time
_ALLOWED = 1e-7  # bound of the relative error of a sum of singular values; found errors are a hundredth of it


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of `count` feature vectors.

    ``mean [D]`` and ``cov [D, D]`` are float64, the covariance normalised by count - 1. Where there are fewer
    vectors than dimensions, ``root [count, D]`` stands for the covariance instead: cov = rootᵀ root.
    """

    count: int
    mean: torch.Tensor
    cov: torch.Tensor | None = None
    root: torch.Tensor | None = None

    def __post_init__(self) -> None:
        assert (self.cov is None) != (self.root is None), "exactly one of cov and root"

    @property
    def trace(self) -> float:
        """Trace of the covariance."""
        if self.root is not None:
            return self.root.square().sum().item()
        assert self.cov is not None
        return self.cov.trace().item()

    def covariance(self) -> torch.Tensor:
        """``[D, D]``, computed from `root` where that is what is stored."""
        if self.root is not None:
            return self.root.T @ self.root
        assert self.cov is not None
        return self.cov

    @cached_property
    def cholesky(self) -> torch.Tensor | None:
        """Lower triangular L ``[D, D]`` with L Lᵀ = cov, made once for all distances to this Gaussian.

        None where there is none: the covariance is singular to double precision.
        """
        factor, failed = torch.linalg.cholesky_ex(self.covariance())
        return None if failed else factor


def fit_gaussian(features: torch.Tensor) -> Gaussian:
    """The `Gaussian` of ``features [n, D]``, n at least 2; float64 copies are made of a block of rows at a time."""
    count, dim = features.shape
    assert count >= 2, "a covariance needs two vectors"
    blocks = features.split(_BLOCK)
    mean = torch.stack([block.double().sum(0) for block in blocks]).sum(0) / count
    if count <= dim:
        return Gaussian(count, mean, root=(features.double() - mean) / (count - 1) ** 0.5)
    scatter = torch.zeros(dim, dim, dtype=torch.float64)
    for block in blocks:
        centred = block.double() - mean
        scatter += centred.T @ centred
    return Gaussian(count, mean, cov=scatter / (count - 1))


def _root(gaussian: Gaussian) -> torch.Tensor:
    """A with AᵀA = cov, as many rows as the covariance has numerically non-zero eigenvalues."""
    if gaussian.root is not None:
        return gaussian.root
    assert gaussian.cov is not None
    values, vectors = torch.linalg.eigh(gaussian.cov)
    threshold = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    keep = values > threshold
    return (vectors[:, keep] * values[keep].sqrt()).T


def _congruence(lower: torch.Tensor, cov: torch.Tensor) -> torch.Tensor:
    """The lower triangle of Lᵀ S L ``[D, D]`` for lower triangular L, a quarter of the operations of two products.

    Above the diagonal blocks the result is zero.
    """
    left, result = torch.empty_like(cov), torch.zeros_like(cov)
    starts = range(0, len(cov), _STEP)
    for start in starts:  # Lᵀ S, as far as it is needed: from its diagonal blocks on
        rows = slice(start, start + _STEP)
        left[rows, start:] = lower[start:, rows].T @ cov[start:, start:]
    for start in starts:
        rows, end = slice(start, start + _STEP), min(start + _STEP, len(cov))
        result[rows, :end] = lower[start:, rows].T @ left[:end, start:].T
    return result


def _gram(matrix: torch.Tensor) -> torch.Tensor:
    """The lower triangle of M Mᵀ; above the diagonal blocks zero."""
    result = matrix.new_zeros(len(matrix), len(matrix))
    for start in range(0, len(matrix), _STEP):
        rows, end = slice(start, start + _STEP), min(start + _STEP, len(matrix))
        result[rows, :end] = matrix[rows] @ matrix[:end].T
    return result


def trace_sqrt_product(a: Gaussian, b: Gaussian) -> float:
    """tr (S_a S_b)^{1/2} by symmetric eigenvalues.

    With S_b = BᵀB the product has the non-zero eigenvalues of B S_a Bᵀ, which is symmetric; B is the sample
    itself where that is smaller than the covariance, so a few hundred images cost a few hundred rows. With a
    sample on both sides the result is the sum of the singular values of A Bᵀ. With none, B is the Cholesky factor
    that S_b keeps, or comes from eigenvectors where the covariance is singular.
    """
    if a.root is not None and b.root is not None:
        return _sum_of_singular_values(a.root @ b.root.T)
    if a.root is not None:
        a, b = b, a
    if a.cov is not None and b.cov is not None and b.cholesky is not None:
        return _sum_of_roots(_congruence(b.cholesky, a.cov))
    root = _root(b)
    return _sum_of_roots(root @ a.covariance() @ root.T)


def _sum_of_singular_values(matrix: torch.Tensor) -> float:
    """Of a product of two centred samples: by eigenvalues of M Mᵀ, in a third of the time, where these are as exact.

    An eigenvalue is rounded by about 1e-16 of the largest, which matters to the roots of small ones: where vectors
    repeat there are many zeros, and each would come out as 1e-8 of the largest singular value.
    """
    if len(matrix) > matrix.shape[1]:
        matrix = matrix.T
    squares = torch.linalg.eigvalsh(_gram(matrix), UPLO="L")[1:].clamp(min=0)  # centred samples: the least one is 0
    roots, rounding = squares.sqrt(), squares.max() * torch.finfo(squares.dtype).eps
    if torch.minimum(rounding.sqrt(), rounding / (2 * roots)).sum() <= _ALLOWED * roots.sum():
        return roots.sum().item()
    return torch.linalg.svdvals(matrix).sum().item()


def _sum_of_roots(product: torch.Tensor) -> float:
    """Of the eigenvalues of a symmetric matrix, of which only the lower triangle is read."""
    return torch.linalg.eigvalsh(product, UPLO="L").clamp(min=0).sqrt().sum().item()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|² + tr(S_a + S_b - 2 (S_a S_b)^{1/2}), never below zero."""
    assert a.mean.shape == b.mean.shape, "features of two detectors"
    squared = (a.mean - b.mean).square().sum().item()
    return max(squared + a.trace + b.trace - 2 * trace_sqrt_product(a, b), 0.0)
