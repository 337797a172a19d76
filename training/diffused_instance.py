"""The diffused instance of DIC-GAN: Eq. 1–4 of the draft, and choosing sigma by them.

(Eq. 5 is the objective in ``training/loss.py``, Eq. 6 is ``pg_modules/modulation.py``, Eq. 7 is
``ldm/training_loop.py``.)
"""

from __future__ import annotations

import math

import torch

from dnnlib import UserError
from torch_utils.device import as_number, sent


def check_sigma(sigma: float) -> float:
    """Returns sigma if 0 ≤ sigma < 1, else raises `UserError`."""
    if not 0 <= sigma < 1:
        raise UserError(f"--sigma {sigma:g}: the noise scale must be in [0, 1), for example 0.3.")
    return float(sigma)


def diffuse(f: torch.Tensor, sigma: torch.Tensor | float, eps: torch.Tensor) -> torch.Tensor:
    """h = √(1 − σ²) f + σ ε: a sample of p(h | x_i, σ) (Eq. 1–2).

    f and eps [N, C, H, W], eps standard normal; sigma a number or [N].
    """
    sigma = as_number(sigma, f).reshape(-1, 1, 1, 1)
    return (1 - sigma.square()).sqrt() * f + sigma * eps


def posterior_log_prob(h: torch.Tensor, f: torch.Tensor, sigma: float) -> torch.Tensor:
    """log p(x_i | h, σ) for every image of a set (Eq. 3–4), through logsumexp.

    h [M, ...], latents f [N, ...] of the set, sigma > 0 → [M, N], each row a log distribution.
    """
    centres = (1 - sigma**2) ** 0.5 * f.flatten(1).double()
    distances = torch.cdist(h.flatten(1).double(), centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.log_softmax(-distances / (2 * sigma**2), dim=1)


def posterior_perplexity(f: torch.Tensor, sigma: float, generator: torch.Generator) -> float:
    """exp of the mean entropy of p(x_i | h, σ) over one h per image: how many images share a cluster.

    f [N, ...] latents of a (sub)set. Between 1 (every cluster is one image) and N (h says nothing).
    """
    if sigma == 0:
        return 1.0
    eps = sent(torch.randn(f.shape, generator=generator), f.device)
    log_prob = posterior_log_prob((1 - sigma**2) ** 0.5 * f + sigma * eps, f, sigma)
    entropy = -(log_prob.exp() * log_prob).sum(1).mean().item()
    return math.exp(entropy)


def sigma_for_perplexity(f: torch.Tensor, perplexity: float, seed: int) -> float:
    """The sigma at which `posterior_perplexity` of f [N, ...] is `perplexity`, to three digits, by bisection.

    Raises `UserError` if no sigma in [0, 0.99] gets there. The same noise is used for every sigma tried.
    """
    low, high = 0.0, 0.99

    def at(sigma: float) -> float:
        return posterior_perplexity(f, sigma, torch.Generator().manual_seed(seed))

    if not 1 < perplexity < at(high):
        raise UserError(
            f"--sigma auto:{perplexity:g}: the posterior perplexity of these {len(f)} images can only be set "
            f"between 1 and {at(high):.1f}; choose a number in between."
        )
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) < perplexity else (low, middle)
    return round((low + high) / 2, 3)
