"""Inception Score of class logits (Salimans et al. 2016)."""

from __future__ import annotations

import torch

PARTS = 10


def inception_score(logits: torch.Tensor, parts: int = PARTS) -> tuple[float, float]:
    """Mean and standard deviation over `parts` of exp E KL(p(y|x) ‖ p(y)) for ``logits [n, K]``, n at least `parts`.

    Computed in float64; the parts are consecutive, as in the original.
    """
    count = len(logits)
    assert count >= parts, "a score needs one image per part"
    scores = []
    for k in range(parts):
        log_p = logits[k * count // parts:(k + 1) * count // parts].double().log_softmax(1)
        log_mean = log_p.logsumexp(0) - torch.tensor(float(len(log_p)), dtype=torch.float64).log()
        scores.append((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())
    values = torch.stack(scores)
    return values.mean().item(), values.std(correction=0).item()
