"""Tensors in pickles of strangers: `Tensor` describes one by its place in a storage.

Functions that the pickles of torch, numpy and StyleGAN call are written anew here, on descriptions instead of objects.
Values are copied only where they are asked for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from torch_utils.inert_data import Budget, Damaged, Global, Inert, Unsafe, check_key, may_be_named, printable
from torch_utils.inert_pickle import Call

MAX_DIMS = 8
MAX_SIDE = 1 << 40

STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool}
# numpy's codes of scalar types, in the letters of struct.
SCALARS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H",
           "u1": "B", "b1": "?"}
BUILTINS = ("builtins", "__builtin__")

# What a file may mention without calling it.
NAMES = frozenset((
    *(f"torch.{name}" for name in STORAGES), *(str(dtype) for dtype in STORAGES.values()), "numpy.ndarray",
    *(f"{module}.{name}" for module in BUILTINS for name in ("object", "dict"))))


@dataclass(eq=False, slots=True)
class Storage:
    """`count` numbers of one type; `data` comes once the file has been read that far."""

    dtype: torch.dtype
    count: int
    data: memoryview | None = None


@dataclass(eq=False, slots=True)
class Tensor:
    """A place in a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * self.storage.dtype.itemsize

    def rows(self, count: int) -> Tensor:
        """The first `count` rows."""
        return Tensor(self.storage, self.offset, (count, *self.shape[1:]), self.stride)

    def values(self) -> torch.Tensor:
        """A copy. `Damaged` unless the elements fill one piece of the storage, each once, in any order of dimensions.

        So no file makes a tensor that is larger than the file.
        """
        if not self.count:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        expected = 1
        for stride, side in sorted((st, si) for st, si in zip(self.stride, self.shape, strict=True) if si != 1):
            if stride != expected:
                raise Damaged("a tensor with gaps or repetitions")
            expected *= side
        if self.storage.data is None or self.offset + self.count > self.storage.count:
            raise Damaged("a tensor beyond its storage")
        start = self.offset * self.storage.dtype.itemsize
        raw = torch.frombuffer(bytearray(self.storage.data[start:start + self.size]), dtype=torch.uint8)
        flat = raw != 0 if self.storage.dtype == torch.bool else raw.view(self.storage.dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


def make_storage(dtype: Any, count: Any) -> Storage:
    """The storage that a persistent identifier describes by its class and number of elements."""
    if not isinstance(dtype, Global) or dtype.module != "torch" or dtype.name not in STORAGES:
        raise Unsafe(f"a storage of type {dtype if isinstance(dtype, Global) else 'unknown'}")
    return Storage(STORAGES[dtype.name], sizes((count,))[0])


def sizes(values: tuple) -> tuple[int, ...]:
    """`values`, if they can be the sides or strides of a tensor."""
    if len(values) > MAX_DIMS or not all(type(value) is int and 0 <= value < MAX_SIDE for value in values):
        raise Damaged("the shape of a tensor")
    return values


def take(args: tuple, *kinds: type) -> tuple:
    """The first arguments of a call, which must be of these kinds."""
    if len(args) < len(kinds) or not all(isinstance(arg, kind) for arg, kind in zip(args, kinds, strict=False)):
        raise Damaged("arguments of the wrong kind")
    return args[:len(kinds)]


def _tensor(args: tuple) -> Tensor:
    """`torch._utils._rebuild_tensor_v2` (storage, offset, size, stride, …)."""
    storage, offset, shape, stride = take(args, Storage, int, tuple, tuple)
    if len(shape) != len(stride):
        raise Damaged("the shape of a tensor")
    return Tensor(storage, sizes((offset,))[0], sizes(shape), sizes(stride))


def _parameter(args: tuple) -> Tensor:
    """`torch._utils._rebuild_parameter` (tensor, requires_grad, hooks)."""
    return take(args, Tensor)[0]


def _numpy(name: str) -> Call:
    """A numpy object as a record; `_scalar` makes numbers of them."""
    return lambda args: Inert(Global("numpy", name), args)


def _scalar(args: tuple) -> Any:
    """`numpy.core.multiarray.scalar` (dtype, bytes); the layout of a dtype has its byte order in second place."""
    dtype, raw = take(args, Inert, bytes)
    code, layout = dtype.args[0] if dtype.args else None, dtype.state.get(None)
    if str(dtype.kind) != "numpy.dtype" or not isinstance(code, str) or code not in SCALARS:
        raise Damaged("a number of an unknown type")
    big = isinstance(layout, tuple) and layout[1:2] == (">",)
    try:
        return struct.unpack((">" if big else "<") + SCALARS[code], raw)[0]
    except struct.error as error:
        raise Damaged("a number of the wrong length") from error


def _persistent_class(args: tuple) -> Inert:
    """StyleGAN's ``_reconstruct_persistent_obj``: a record that brings the class's source text, which is left alone."""
    record = take(args, dict)[0]
    name, state = record.get("class_name"), record.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise Damaged("a persistent class without name or state")
    return Inert(Global("persistence", printable(name)), state=state)


def _reconstructor(args: tuple) -> Inert:
    """``copyreg._reconstructor`` (class, base, value), an instance in protocols 0 and 1."""
    kind = take(args, Global)[0]
    if not may_be_named(str(kind)):
        raise Unsafe(f"an instance of {kind}")
    return Inert(kind)


def calls(budget: Budget, load_from_bytes: Call) -> dict[str, Call]:
    """The table for a `Machine`. `load_from_bytes`: reads the file that `torch.storage._load_from_bytes` is given."""
    def pairs(args: tuple) -> dict[Any, Any]:
        entries = take(args, list)[0] if args else []
        budget.spend(len(entries))
        if not all(isinstance(entry, (list, tuple)) and len(entry) == 2 for entry in entries):
            raise Damaged("a dictionary of something else than pairs")
        return {check_key(key): value for key, value in entries}

    def members(args: tuple) -> set[Any]:
        entries = take(args, list)[0] if args else []
        budget.spend(len(entries))
        return {check_key(entry) for entry in entries}

    def encode(args: tuple) -> bytes:
        text, encoding = take(args, str, str)
        if encoding not in ("latin1", "latin-1"):
            raise Unsafe(f"the encoding {printable(encoding)}")
        budget.spend(size=len(text))
        return text.encode("latin1")

    table: dict[str, Callable[[tuple], Any]] = {
        "collections.OrderedDict": pairs,
        "_codecs.encode": encode,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch.storage._load_from_bytes": load_from_bytes,
        "torch.Size": lambda args: take(args, tuple)[0],
        "torch.device": lambda args: Inert(Global("torch", "device"), args),
        "numpy.dtype": _numpy("dtype"),
        "*._reconstruct_persistent_obj": _persistent_class,
    }
    table |= {f"{module}.set": members for module in BUILTINS}
    table |= {f"{module}._reconstructor": _reconstructor for module in ("copyreg", "copy_reg")}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        table |= {f"{module}.scalar": _scalar, f"{module}._reconstruct": _numpy("ndarray")}
    return table
