"""Strict binding of plain-data configuration to the classes and functions of this project.

A configuration may come out of a checkpoint that a stranger made. So it names classes of three packages only, of the
kinds that a configuration is made of; nothing else is imported or called, and no number may describe an absurd size.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dnnlib.util import UserError

_NAME = re.compile(r"((?:pg_modules|training|ldm)(?:\.[A-Za-z_]\w*)*)\.([A-Za-z_]\w*)", re.ASCII)
_NETWORK = "torch.nn.modules.module.Module"
# What a configuration builds descends from one of these. They are names, so that this package imports none of them.
_KINDS = frozenset({_NETWORK, "training.conditioning.base.Conditioning", "training.d_noise.base.DNoise",
                    "training.objective.Objective", "training.options.RunOptions"})
_SIZED = {_NETWORK, "training.conditioning.base.Conditioning"}  # whose whole numbers are sizes
MAX_SIZE = 1 << 20  # of a width, a number of layers, of steps: what is larger isn't even tried


def _ancestors(target: Any) -> set[str]:
    return {f"{cls.__module__}.{cls.__qualname__}" for cls in target.__mro__} if isinstance(target, type) else set()


def _resolve(dotted: Any) -> type:
    """The class called `dotted`; `UserError` for everything that a configuration has no business to name."""
    match = _NAME.fullmatch(dotted) if isinstance(dotted, str) else None
    target = None
    if match is not None:
        try:
            target = getattr(importlib.import_module(match[1]), match[2], None)
        except ModuleNotFoundError as error:
            if not error.name or not f"{match[1]}.".startswith(f"{error.name}."):
                raise
    if match is None or not isinstance(target, type) or target.__module__ != match[1] or not (
            _KINDS & _ancestors(target)):
        raise UserError(f"Configuration names {dotted!r}, which does not exist among the networks, methods and options "
                        "of this project; use a file that train.py or ldm/train.py wrote.")
    return target


def _fits(value: Any, annotation: Any) -> bool:
    """Whether plain data has an annotated type; what isn't plain data (a network given by the caller) always has."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin in (Sequence, list, tuple):
        elements = inner[0] if inner else Any
        return isinstance(value, (list, tuple)) and all(_fits(one, elements) for one in value)
    if origin in (Mapping, dict):
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(one, inner[1]) for key, one in value.items())
    if annotation in (int, float):
        return isinstance(value, (int, annotation)) and not isinstance(value, bool)
    if annotation in (bool, str, types.NoneType):
        return isinstance(value, annotation)
    return True


def _numbers(value: Any) -> Iterator[int]:
    """All whole numbers in nested plain data."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int):
        yield value


def bind(target: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """All keyword arguments of `target` with `options` filled in.

    Unknown keys, missing ones, values of another type than the annotation says, and whole numbers above `MAX_SIZE` for
    a network, a conditioning or a function are a `UserError`. Targets must not take ``*args`` or ``**kwargs``: those
    would swallow a mistyped key.
    """
    name = f"{target.__module__}.{target.__qualname__}"
    parameters = inspect.signature(target).parameters
    for parameter in parameters.values():
        assert parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD), f"{name} swallows keys"
    unknown = sorted(str(key) for key in set(options) - set(parameters))
    if unknown:
        raise UserError(f"{name} has no option {', '.join(unknown)}; it knows {', '.join(parameters)}.")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise UserError(f"{name} needs {', '.join(missing)}.")
    _check_values(target, name, options)
    return {key: options.get(key, parameter.default) for key, parameter in parameters.items()}


def _check_values(target: Callable[..., Any], name: str, options: Mapping[str, Any]) -> None:
    """Types as annotated, sizes within reason."""
    annotations = typing.get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    is_sized = not isinstance(target, type) or bool(_SIZED & _ancestors(target))
    for key, value in options.items():
        if not _fits(value, annotations.get(key, Any)):
            raise UserError(f"{name}: {key} is {value!r}, which has not the type that it needs.")
        if is_sized and any(abs(number) > MAX_SIZE for number in _numbers(value)):
            raise UserError(f"{name}: {key} is {value!r}; no size is above {MAX_SIZE}.")


def construct(spec: Mapping[str, Any], **extra: Any) -> Any:
    """Builds ``spec["class_name"]`` (a dotted name) from the other keys of `spec` and `extra`.

    The class is one of the project's networks, conditionings, noises, objectives or run options; networks are built
    within `dnnlib.build_limit.limited`. Raises `UserError` for any other name and as `bind`.
    """
    if not isinstance(spec, Mapping) or "class_name" not in spec:
        raise UserError("Configuration lacks the class_name of a part; use a file that train.py or ldm/train.py wrote.")
    options = {**spec, **extra}
    target = _resolve(options.pop("class_name"))
    arguments = bind(target, options)
    if _NETWORK not in _ancestors(target):
        return target(**arguments)
    from dnnlib.build_limit import limited  # torch is loaded by now

    with limited():
        return target(**arguments)
