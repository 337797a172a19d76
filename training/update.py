"""The end of a phase: gradients of all processes, a look at whether anything isn't finite, the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from torch_utils import distributed, exchange
from torch_utils.loss_scale import LossScale

Losses = Sequence[tuple[str, torch.Tensor]]  # name and scalar of every backward pass

_GRADIENT = "a gradient is not finite"


def take_step(optimizer: torch.optim.Optimizer, gradients: list[torch.Tensor], losses: Losses,
              scale: LossScale | None) -> str | None:
    """Averages `gradients` over processes and steps; what isn't finite, in words, if something kept it from stepping.

    scale: what the losses were multiplied by, None for nothing. Gradients that overflow with it are no failure: the
    step is left out, and the next has a smaller scale.
    """
    # Several processes have to agree on losses before they share gradients; one looks at everything at once.
    problem = exchange.average_gradients(gradients, not_finite(losses) if distributed.world() > 1 else None)
    if scale is not None:
        torch._foreach_mul_(gradients, 1 / scale.value)
    problem = problem or not_finite(losses, torch.nn.utils.get_total_norm(gradients))
    if problem == _GRADIENT and scale is not None and scale.overflowed():
        return None
    if problem is None:
        optimizer.step()
        if scale is not None:
            scale.stepped()
    return problem


def not_finite(losses: Losses, norm: torch.Tensor | None = None) -> str | None:
    """The first of `losses` that isn't finite, or else the gradient with that `norm`; None if all are.

    The device hands over all numbers together: every ``.item()`` would wait for it.
    """
    values = torch.stack([*(loss for _, loss in losses), *([] if norm is None else [norm])]).tolist()
    for (name, _), value in zip(losses, values, strict=False):
        if not math.isfinite(value):
            return f"the loss {name} is {value}"
    return None if math.isfinite(values[-1]) else _GRADIENT
