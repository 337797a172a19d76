"""What processes exchange: weights, rows of batches, sums, gradients, statistics, and work that is dealt out.

One process keeps what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist

from dnnlib import UserError
from torch_utils.distributed import any_true, contact, rank, world
from torch_utils.stats import Collector

S = TypeVar("S")
T = TypeVar("T")


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


# Work that is dealt out.

@dataclass(frozen=True)
class Numbered(Generic[T]):
    """Things by number, each made when it is asked for: ``make(k)`` for k below `count`.

    Who iterates makes all of them, in order; with `dealt`, all processes do.
    """

    count: int
    make: Callable[[int], T]

    def __iter__(self) -> Iterator[T]:
        return map(self.make, range(self.count))

    def then(self, change: Callable[[T], S]) -> Numbered[S]:
        """Each of them changed by whoever makes it."""
        return Numbered(self.count, lambda k: change(self.make(k)))


def in_batches(items: Sequence[S], size: int, make: Callable[[Sequence[S]], T]) -> Numbered[T]:
    """What `make` makes of `size` of `items` after the other."""
    return Numbered(-(-len(items) // size), lambda k: make(items[k * size:(k + 1) * size]))


def dealt(things: Numbered[T]) -> Iterator[T]:
    """All of `things` in order on process 0, and nothing elsewhere; number k is made by process k mod N.

    Every process goes through all of it, a round of N at a time. A `UserError` of one of them is raised on all, so
    that it is told once.
    """
    if world() == 1:
        yield from things
        return
    for start in range(0, things.count, world()):
        number, own, problem = start + rank(), None, None
        try:
            own = things.make(number) if number < things.count else None
        except UserError as error:
            problem = error.message
        _agree_on(problem)
        made: list[Any] | None = [None] * world() if rank() == 0 else None
        with contact():
            dist.gather_object(own, made, dst=0)
        if made is not None:
            yield from made[:things.count - start]


def _agree_on(problem: str | None) -> None:
    """`UserError` on all processes if one has a problem: the first one's."""
    if any_true(problem is not None)[0]:
        problems: list[Any] = [None] * world()
        with contact():
            dist.all_gather_object(problems, problem)
        raise UserError(next(text for text in problems if text is not None))
