"""Random numbers of a step that several processes share: those that one process would have drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from torch_utils import distributed

DRAWS: tuple[Callable[..., Any], ...] = (torch.rand, torch.randn, torch.randint)


class SharedDraws(TorchFunctionMode):
    """While entered, draws are made for the images of all processes, of which each takes its rows.

    Row k here is row k · world + rank of the draw that one process would make for the whole pass (see
    `distributed.share`). That concerns draws from `generator`, on the CPU, and from any on another device, which a step
    seeds from that one, and dropout, whose masks come from the global generator. The first dimension of a draw counts
    images; a draw of shape () is common to all. Costs what the draws of one process cost. Other kinds of draws from
    these generators aren't known here: AssertionError.
    """

    def __init__(self, generator: torch.Generator | None, rank: int, world: int, part: int = 0, parts: int = 1) -> None:
        """generator: of the step; None = dropout only. part: which of `parts` equal micro-batches this is, in order."""
        super().__init__()
        self.generator, self.rank, self.world, self.part, self.parts = generator, rank, world, part, parts

    def _own(self, drawn: torch.Tensor) -> torch.Tensor:
        """The rows of this process and micro-batch."""
        size = len(drawn) // self.parts
        return drawn[self.part * size:][:size][self.rank::self.world]

    def _is_of_the_step(self, generator: torch.Generator | None) -> bool:
        return generator is self.generator or (generator is not None and generator.device.type != "cpu")

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.dropout:
            return self._dropout(*args, **kwargs)
        if self.generator is None or not self._is_of_the_step(kwargs.get("generator")):
            return func(*args, **kwargs)
        assert func in DRAWS, f"{func} draws in a way that processes don't share"
        bounds, size = args[:-1], args[-1]
        if isinstance(size, int):  # torch.randn(2, 3)
            bounds, size = (), args
        if not len(size):
            return func(*args, **kwargs)
        return self._own(func(*bounds, (size[0] * self.world * self.parts, *size[1:]), **kwargs)).contiguous()

    def _dropout(self, x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or p == 0:
            return x
        mask = self._own(functional.dropout(x.new_ones(len(x) * self.world * self.parts, *x.shape[1:]), p))
        return x.mul_(mask) if inplace else x * mask


def shared_draws(generator: torch.Generator | None, part: int = 0, parts: int = 1) -> contextlib.AbstractContextManager:
    """`SharedDraws` where there are several processes or micro-batches, else nothing."""
    if distributed.world() * parts == 1:
        return contextlib.nullcontext()
    return SharedDraws(generator, distributed.rank(), distributed.world(), part, parts)
