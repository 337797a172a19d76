"""What processes exchange: weights, rows of batches, sums, gradients, statistics. One process keeps what it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from dnnlib import UserError
from torch_utils.distributed import contact, rank, world
from torch_utils.stats import Collector


@torch.no_grad()
def broadcast(*modules: torch.nn.Module) -> None:
    """Parameters and buffers of process 0 become those of all."""
    if world() == 1:
        return
    with contact():
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                sent = tensor.contiguous()
                dist.broadcast(sent, src=0)
                tensor.copy_(sent)


def check_same(*modules: torch.nn.Module) -> None:
    """`UserError` if processes don't have the same parameters any more, as machines that round differently would."""
    if world() == 1:
        return
    total = torch.stack([p.detach().double().sum().cpu() for module in modules for p in module.parameters()]).sum()
    parts = _gathered(total)
    for number, part in enumerate(parts):
        if part != parts[0]:
            raise UserError(f"The weights of process {number} have drifted from those of process 0: their machines "
                            "round differently. Use machines (and versions of PyTorch) of one kind.")


def _gathered(x: torch.Tensor) -> list[torch.Tensor]:
    """x of every process, in order."""
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(world())]
    with contact():
        dist.all_gather(parts, x)
    return parts


def gather(x: torch.Tensor) -> torch.Tensor:
    """``[world, *shape]``: x of every process, without a graph."""
    return x.detach()[None] if world() == 1 else torch.stack(_gathered(x.detach()))


def gather_rows(x: torch.Tensor) -> torch.Tensor:
    """``[N, ...]`` of every process as ``[world · N, ...]`` in the order of the batch that was dealt out; no graph."""
    return x.detach() if world() == 1 else gather(x).transpose(0, 1).flatten(0, 1)


def all_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum of x over processes, in place; x is contiguous and has no graph."""
    if world() > 1:
        with contact():
            dist.all_reduce(x)
    return x


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return all_sum(x.clone()) / world()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        return all_sum(grad_outputs[0].clone()) / world()


def mean(x: torch.Tensor) -> torch.Tensor:
    """The mean of x over processes. Its gradient is that of the sum of all processes' losses."""
    return x if world() == 1 else _Mean.apply(x)


def average_gradients(gradients: Sequence[torch.Tensor], problem: str | None) -> str | None:
    """Replaces `gradients` by their means over processes, each of which has had as many images.

    problem: what this process has to complain about, or None. Returns the first complaint, on all of them.
    """
    if world() == 1:
        return problem
    flat = torch.cat([*(g.flatten() for g in gradients), gradients[0].new_tensor([float(problem is not None)])])
    all_sum(flat)
    parts = (flat[:-1] / world()).split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))
    if not flat[-1]:
        return None
    problems: list[Any] = [None] * world()
    with contact():
        dist.all_gather_object(problems, problem)
    return next(f"on process {number} {text}" for number, text in enumerate(problems) if text is not None)


def merge_statistics(collector: Collector) -> None:
    """Gives process 0 what all have collected; the others start anew."""
    if world() == 1:
        return
    states: list[Any] = [None] * world()
    with contact():
        dist.all_gather_object(states, collector.state_dict())
    merged: dict[str, list[float]] = {}
    for state in states if rank() == 0 else []:
        for name, moments in state.items():
            former = merged.get(name, [0.0, 0.0, 0.0])
            merged[name] = [a + b for a, b in zip(former, moments, strict=True)]
    collector.load_state_dict(merged)
