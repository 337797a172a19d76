"""Backward passes that are written by hand, where they are to be differentiated again: those of a plain form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Gradient = torch.Tensor | None


def differentiable(form: Callable[..., torch.Tensor], inputs: Sequence[Gradient], grad: torch.Tensor,
                   needed: Sequence[bool]) -> tuple[Gradient, ...]:
    """Gradients of ``form(*inputs)``, where `needed`, with a graph of their own, from that of its output."""
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need and tensor is not None]
    found = iter(torch.autograd.grad(form(*inputs), wanted, grad, create_graph=True, materialize_grads=True))
    return tuple(next(found) if need else None for need in needed)


def of_convolution(ctx: Any, grad: torch.Tensor, plain: Callable[..., torch.Tensor],
                   of_x: Callable[..., torch.Tensor],
                   of_weight: Callable[..., torch.Tensor]) -> tuple[Gradient, Gradient]:
    """The backward pass of ``plain(x, weight)``, both saved in `ctx`, from the gradient of its output.

    of_x, of_weight: of x, the weight, and that gradient with the channels last; asked for what is needed alone.
    """
    x, weight = ctx.saved_tensors
    if torch.is_grad_enabled():
        first, second = differentiable(plain, (x, weight), grad, ctx.needs_input_grad)
        return first, second
    grad = grad.contiguous(memory_format=torch.channels_last)
    needs_x, needs_weight = ctx.needs_input_grad
    return of_x(x, weight, grad) if needs_x else None, of_weight(x, weight, grad) if needs_weight else None
