"""What pickles of strangers become, names and records instead of classes and objects; what reading them may cost."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import Any

MAX_STEPS = 1_000_000  # opcodes and copied entries; the largest official snapshots need a tenth of this
MAX_KEY = 1000  # characters
MAX_NAME = 200  # characters of module and name


class Unsafe(Exception):
    """The file asks for more than data; the text says for what, most often a dotted name."""


class Damaged(ValueError):
    """The file is no pickle, or a broken one; the text says where it breaks."""


class Budget:
    """What reading a file may cost in all: steps, and bytes copied out of it."""

    def __init__(self, file_size: int) -> None:
        self.steps, self.bytes = MAX_STEPS, 4 * file_size

    def spend(self, steps: int = 0, size: int = 0) -> None:
        """Takes from both; `Unsafe` when one of them is used up."""
        self.steps -= steps
        self.bytes -= size
        if self.steps < 0:
            raise Unsafe(f"more than {MAX_STEPS:,} steps of unpickling")
        if self.bytes < 0:
            raise Unsafe("copying parts of the file over and over")


@dataclass(frozen=True, slots=True)
class Global:
    """A name in a module, neither of which needs to exist."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False, slots=True)
class Inert:
    """What is known of an object whose class isn't there.

    `state`: its attributes (None: a state that is no dictionary); `args`: of its constructor; `items`, `elements`: what
    it holds if it is a dictionary or a list.
    """

    kind: Global
    args: tuple = ()
    state: dict[Any, Any] = field(default_factory=dict)
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


def printable(text: str, width: int = 80) -> str:
    """`text` of a file as one short line that can't steer a terminal."""
    text = ascii(text[:width + 1])[1:-1]
    return text if len(text) <= width else text[: width - 1] + "…"


# Of these modules layers are kept in snapshots, and nothing else.
LAYERS = ("torch.nn.", "torch.ao.nn.")
# Refused even where they are only named. What isn't in this list can't be called either.
FORBIDDEN = sys.stdlib_module_names | {"__builtin__", "copy_reg", "exceptions", "commands", "torch", "numpy"}


def may_be_named(dotted: str) -> bool:
    """Whether a name outside of the tables can be that of a class of an official snapshot."""
    plain = re.fullmatch(r"([A-Za-z_]\w*\.)+_?[A-Za-z]\w*", dotted, flags=re.ASCII)
    known = dotted.startswith(LAYERS) or dotted.partition(".")[0] not in FORBIDDEN
    return plain is not None and known


def check_key(key: Any) -> Any:
    """`key`, if hashing and comparing it is cheap; `Damaged` otherwise.

    Long integers and fractions can be chosen so that all of them collide, and nested tuples so that hashing them
    overflows the stack.
    """
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        small = isinstance(part, int) and -(1 << 60) < part < 1 << 60
        short = isinstance(part, (str, bytes)) and len(part) <= MAX_KEY
        if len(parts) > 8 or not (small or short or part is None or isinstance(part, (Global, Inert))):
            raise Damaged("a key that is neither a short text nor a number")
    return key
