"""Reads pickles of strangers into inert data: nothing that a file names is imported or called.

`pickletools.genops` splits the stream into opcodes, and the small machine here executes them on plain containers.
A class becomes a name (`Global`), its instance a record of its state (`Inert`). A call is a look-up in a table of
functions of ours; everything that isn't in the table is refused by name. `pickle.Unpickler` with a `find_class` of our
own would not do: it sets attributes on whatever lies on its stack, lets one opcode make its memo gigabytes large, and
overflows the C stack when it hashes nested tuples.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

from torch_utils.inert_data import MAX_NAME, Budget, Damaged, Global, Inert, Unsafe, check_key, may_be_named, printable

MAX_PROTOCOL = 5
MAX_MEMO = 1 << 32

Call = Callable[[tuple], Any]  # arguments as they lay on the stack → value


class Machine:
    """One pass over a stream of opcodes.

    calls       functions by the dotted name that they stand for, or by ``*.name`` for any module
    names       further dotted names that the file may mention without calling them
    persistent  makes objects of persistent identifiers; None refuses them
    """

    def __init__(self, calls: Mapping[str, Call], names: frozenset[str], budget: Budget,
                 persistent: Call | None = None) -> None:
        self.calls, self.names, self.budget, self.persistent = calls, names, budget, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        """The object whose pickle starts at the file's position, which moves behind it.

        Raises `Unsafe`, `Damaged`, or a ValueError of pickletools.
        """
        self.stack, self.marks, self.memo = [], [], {}
        for opcode, arg, _ in pickletools.genops(file):
            if opcode.name in LITERALS:
                self.budget.spend(1, len(arg) if isinstance(arg, (str, bytes)) else 0)
                self.push(arg)
            elif opcode.name in OPERATIONS:
                self.budget.spend(1)
                OPERATIONS[opcode.name](self, arg)
            elif opcode.name != "STOP":
                raise Unsafe(f"the pickle opcode {opcode.name}")
        return self.pop()

    def push(self, value: Any) -> None:
        """Puts an object on top."""
        self.stack.append(value)

    def pop(self) -> Any:
        """The topmost object."""
        if not self.stack:
            raise Damaged("an operand is missing")
        return self.stack.pop()

    def top(self) -> Any:
        """The topmost object, which stays there."""
        if not self.stack:
            raise Damaged("an operand is missing")
        return self.stack[-1]

    def mark(self) -> None:
        """Begins a group of objects."""
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """The group since the last mark."""
        if not self.marks:
            raise Damaged("a mark is missing")
        group, self.stack = self.stack, self.marks.pop()
        return group

    def pop_many(self, count: int) -> list[Any]:
        """The last `count` objects."""
        return [self.pop() for _ in range(count)][::-1]

    def put(self, index: int | None = None) -> None:
        """Remembers the topmost object under `index`, or under the next number."""
        index = len(self.memo) if index is None else index
        if not 0 <= index < MAX_MEMO:
            raise Damaged("a memo number out of range")
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        """Pushes an object that was remembered."""
        if index not in self.memo:
            raise Damaged("something is used before it is made")
        self.push(self.memo[index])

    def extend(self, values: list[Any]) -> None:
        """Adds to the list below."""
        target = self.top()
        target = target.elements if isinstance(target, Inert) else target
        if not isinstance(target, list):
            raise Damaged("elements of something that is no list")
        target.extend(values)

    def update(self, pairs: list[Any]) -> None:
        """Adds keys and values in turn to the dictionary below."""
        target = self.top()
        target = target.items if isinstance(target, Inert) else target
        if not isinstance(target, dict) or len(pairs) % 2:
            raise Damaged("items of something that is no dictionary")
        target.update((check_key(key), value) for key, value in zip(pairs[::2], pairs[1::2], strict=True))

    def add(self, values: list[Any]) -> None:
        """Adds to the set below."""
        target = self.top()
        if not isinstance(target, set):
            raise Damaged("members of something that is no set")
        target.update(check_key(value) for value in values)

    def find(self, module: Any, name: Any) -> None:
        """Pushes the name of a class or function; `Unsafe` unless it may be mentioned."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise Damaged("a name that is no text")
        if len(module) + len(name) > MAX_NAME:
            raise Unsafe(printable(module))
        dotted = f"{module}.{name}"
        if dotted not in self.calls and dotted not in self.names and ("." in name or not may_be_named(dotted)):
            raise Unsafe(printable(dotted))
        self.push(Global(module, name))

    def new(self) -> None:
        """An instance without its constructor."""
        kind, args = self.pop_many(2)
        if not isinstance(kind, Global) or not isinstance(args, tuple) or not may_be_named(str(kind)):
            raise Unsafe(f"an instance of {kind if isinstance(kind, Global) else 'something that is no class'}")
        self.push(Inert(kind, args))

    def call(self) -> None:
        """The value that the table has for a function and its arguments."""
        function, args = self.pop_many(2)
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise Unsafe("a call of something that is no function")
        handler = self.calls.get(str(function)) or self.calls.get(f"*.{function.name}")
        if handler is None:
            raise Unsafe(f"a call of {function}")
        self.push(handler(args))

    def build(self) -> None:
        """Attributes of the instance below."""
        state, target = self.pop(), self.top()
        if isinstance(target, dict):
            return  # attributes of an OrderedDict, such as the versions in a state dict
        if not isinstance(target, Inert):
            raise Unsafe("attributes of something that is no instance")
        if isinstance(state, dict):
            self.budget.spend(len(state))
            target.state.update(state)
        else:
            target.state[None] = state

    def persist(self) -> None:
        """The object of a persistent identifier."""
        identifier = self.pop()
        if self.persistent is None or not isinstance(identifier, tuple):
            raise Unsafe("a persistent object outside of a file of torch.save")
        self.push(self.persistent(identifier))

    def protocol(self, version: int) -> None:
        """Refuses versions that don't exist."""
        if version > MAX_PROTOCOL:
            raise Damaged(f"pickle protocol {version}")


# Opcodes whose argument is the object.
LITERALS = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8"))

# All others but STOP: what isn't here (EXT1, INST, NEWOBJ_EX, …) is refused.
OPERATIONS: dict[str, Callable[[Machine, Any], object]] = {
    "PROTO": Machine.protocol,
    "FRAME": lambda m, arg: None,
    "NONE": lambda m, arg: m.push(None),
    "NEWTRUE": lambda m, arg: m.push(True),
    "NEWFALSE": lambda m, arg: m.push(False),
    "EMPTY_TUPLE": lambda m, arg: m.push(()),
    "EMPTY_LIST": lambda m, arg: m.push([]),
    "EMPTY_DICT": lambda m, arg: m.push({}),
    "EMPTY_SET": lambda m, arg: m.push(set()),
    "MARK": lambda m, arg: m.mark(),
    "POP_MARK": lambda m, arg: m.pop_mark(),
    "POP": lambda m, arg: m.pop(),
    "TUPLE": lambda m, arg: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, arg: m.push(tuple(m.pop_many(1))),
    "TUPLE2": lambda m, arg: m.push(tuple(m.pop_many(2))),
    "TUPLE3": lambda m, arg: m.push(tuple(m.pop_many(3))),
    "LIST": lambda m, arg: m.push(m.pop_mark()),
    "APPEND": lambda m, arg: m.extend(m.pop_many(1)),
    "APPENDS": lambda m, arg: m.extend(m.pop_mark()),
    "SETITEM": lambda m, arg: m.update(m.pop_many(2)),
    "SETITEMS": lambda m, arg: m.update(m.pop_mark()),
    "ADDITEMS": lambda m, arg: m.add(m.pop_mark()),
    "PUT": Machine.put,
    "BINPUT": Machine.put,
    "LONG_BINPUT": Machine.put,
    "MEMOIZE": Machine.put,
    "GET": Machine.get,
    "BINGET": Machine.get,
    "LONG_BINGET": Machine.get,
    "GLOBAL": lambda m, arg: m.find(*arg.split(" ", 1)),
    "STACK_GLOBAL": lambda m, arg: m.find(*m.pop_many(2)),
    "NEWOBJ": lambda m, arg: m.new(),
    "REDUCE": lambda m, arg: m.call(),
    "BUILD": lambda m, arg: m.build(),
    "BINPERSID": lambda m, arg: m.persist(),
}
