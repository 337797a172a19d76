"""A bound on what the construction of a network may allocate, for configurations that strangers wrote."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from dnnlib.util import UserError

MAX_ELEMENTS = 1 << 30  # 4 GiB of float32; the largest published networks of this family have a fifth of it
MAX_MODULES = 10_000

_FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})
_active: list[_Limit] = []


class _Limit(TorchFunctionMode):
    """Counts what torch's factories are asked for, before they allocate it, and the modules that are put together."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.modules = elements, MAX_MODULES

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: tuple = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            self.elements -= _count(args or (kwargs.get("size", ()),))
            if self.elements < 0:
                raise UserError("The configuration describes a network far larger than its weights, or than any that "
                                "this project trains; use a file that train.py or ldm/train.py wrote.")
        return func(*args, **kwargs)

    def module(self, *_: Any) -> None:
        """A registration hook."""
        self.modules -= 1
        if self.modules < 0:
            raise UserError(f"The configuration describes a network of more than {MAX_MODULES} parts; use a file that "
                            "train.py or ldm/train.py wrote.")


def _count(args: Sequence[Any]) -> int:
    """Elements of a tensor whose size comes first in `args`, as one sequence or as numbers."""
    size = args if isinstance(args[0], int) else args[0]
    return math.prod(max(side, 0) for side in size if isinstance(side, int))


@contextlib.contextmanager
def limited(elements: int = MAX_ELEMENTS) -> Iterator[None]:
    """Within this, networks of more than `elements` values in all or `MAX_MODULES` parts are a `UserError`.

    It is raised before the memory is taken. Nested uses count towards the outermost one.
    """
    if _active:
        yield
        return
    limit = _Limit(elements)
    hook = register_module_module_registration_hook(limit.module)
    _active.append(limit)
    try:
        with limit:
            yield
    finally:
        _active.pop()
        hook.remove()


def limit_for(weights: Mapping[str, torch.Tensor]) -> int:
    """What `limited` should allow for a network that is to have these `weights`: room for initial values and for a
    frozen network besides."""
    return 2 * sum(tensor.numel() for tensor in weights.values()) + (1 << 27)
