"""The C kernels of `pg_modules/c`, where this machine can compile them: in one pass what takes torch many.

Nothing needs them: `pg_modules.winograd_sums`, `pg_modules.upsample_products`, `pg_modules.norm_gate`,
`pg_modules.styled_activation` and `ldm.unet` have the same in torch's operations. ``DICGAN_KERNELS=off`` does without;
``on`` is the default.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

from dnnlib import UserError, cache_folder
from torch_utils import c_library

SOURCE = Path(__file__).parent / "c" / "kernels.c"
VARIABLE = "DICGAN_KERNELS"
_SUFFIXES = {torch.float32: "f", torch.float64: "d"}

Argument = torch.Tensor | list[torch.Tensor] | int | float | None


def wanted() -> bool:
    """Whether the user wants kernels; `UserError` for a value of ``DICGAN_KERNELS`` that is neither on nor off."""
    value = os.environ.get(VARIABLE) or "on"
    if value not in ("on", "off"):
        raise UserError(f"{VARIABLE}={value}: set it to on or off, or not at all.")
    return value == "on"


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The library, or why there is none; compiled at the first call of a machine, which takes a second or two."""
    if not wanted():
        return f"{VARIABLE}=off"
    try:
        return c_library.load(SOURCE, cache_folder() / "kernels")
    except c_library.NoLibrary as reason:
        return str(reason)


def missing() -> str:
    """Why there are no kernels; "" if there are."""
    library = _library()
    return library if isinstance(library, str) else ""


def usable(x: torch.Tensor) -> bool:
    """Whether kernels work on a tensor like x: on a CPU, in float32 or float64, and there are any."""
    return x.device.type == "cpu" and x.dtype in _SUFFIXES and not missing()


def call(name: str, *arguments: Argument) -> None:
    """Calls a kernel of the first tensor's type, with torch's number of threads.

    Tensors, or lists of them for arrays of pointers, have to be contiguous; None is a null pointer, an integer an
    int64_t, a float a double.
    """
    library = _library()
    assert isinstance(library, ctypes.CDLL)
    tensors = [tensor for argument in arguments if isinstance(argument, (torch.Tensor, list))
               for tensor in (argument if isinstance(argument, list) else [argument])]
    assert all(tensor.is_contiguous() for tensor in tensors)
    form = getattr(library, f"{name}_{_SUFFIXES[tensors[0].dtype]}")
    form.restype = None
    form(*map(_as_c, arguments), ctypes.c_int(torch.get_num_threads()))


def _as_c(argument: Argument) -> object:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    return (ctypes.c_void_p * len(argument))(*(tensor.data_ptr() for tensor in argument))


def kernels_of_taps(matrix: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``[K, out, in]``: ``matrix [K, 9]`` times the taps of ``weight [out, in, 3, 3]``."""
    made = weight.new_empty(len(matrix), *weight.shape[:2])
    call("kernels_of_taps", weight.contiguous(), matrix.to(weight).contiguous(), made, len(matrix), made[0].numel())
    return made


def taps_of_kernels(matrix: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """``[out, in, 3, 3]``, from gradients of what `kernels_of_taps` made that of the weight."""
    weight = kernels.new_empty(*kernels.shape[1:], 3, 3)
    call("taps_of_kernels", kernels, matrix.to(kernels).contiguous(), weight, len(matrix), kernels[0].numel())
    return weight
