"""Strict binding of plain-data configuration to classes and functions."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dnnlib.util import UserError


def _resolve(dotted: str) -> Callable[..., Any]:
    module_name, _, attribute = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ValueError, AttributeError) as error:
        raise UserError(f"Configuration names {dotted!r}, which does not exist.") from error
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise UserError(f"Configuration names {dotted!r}, which does not exist.") from error
        raise


def bind(target: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """All keyword arguments of `target` with `options` filled in.

    Unknown keys and missing ones are a `UserError`. Targets must not take ``*args`` or ``**kwargs``:
    those would swallow a mistyped key.
    """
    name = f"{target.__module__}.{target.__qualname__}"
    parameters = inspect.signature(target).parameters
    for parameter in parameters.values():
        assert parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD), f"{name} swallows keys"
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise UserError(f"{name} has no option {', '.join(unknown)}; it knows {', '.join(parameters)}.")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise UserError(f"{name} needs {', '.join(missing)}.")
    return {key: options.get(key, parameter.default) for key, parameter in parameters.items()}


def construct(spec: Mapping[str, Any], **extra: Any) -> Any:
    """Builds ``spec["class_name"]`` (a dotted name) from the other keys of `spec` and `extra`."""
    options = {**spec, **extra}
    target = _resolve(options.pop("class_name"))
    return target(**bind(target, options))
