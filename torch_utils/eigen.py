"""Eigenvectors of symmetric matrices, by a method that always gets there."""

from __future__ import annotations

import torch


def eigh(matrix: torch.Tensor, largest: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues ``[K]``, ascending, and eigenvectors ``[n, K]`` of a symmetric ``[n, n]``; float64, on the CPU.

    largest: only the K of the largest eigenvalues, which is quicker.

    By SciPy's LAPACK: bisection and inverse iteration (Parlett and Dhillon 2000). `torch.linalg.eigh` divides and
    conquers, and on some processors it gives up ("failed to converge") on covariances of fewer samples than
    dimensions, which small data sets have; and MPS has no float64.
    """
    import scipy.linalg

    exact = matrix.detach().cpu().double().numpy()
    subset = None if largest is None else (len(exact) - largest, len(exact) - 1)
    values, vectors = scipy.linalg.eigh(exact, subset_by_index=subset, driver="evr", check_finite=False)
    return torch.from_numpy(values), torch.from_numpy(vectors)
