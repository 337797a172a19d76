"""The networks in an official snapshot, as class names, attributes and tensors by dotted path."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from pg_modules.stylegan2_ops import fir_filter
from torch_utils.inert_data import Damaged, Inert, printable
from torch_utils.inert_torch import Tensor

MAX_ENTRIES = 50_000  # modules, parameters and buffers of a network; the largest official one has a tenth of this
MAX_DEPTH = 32
MAX_NAME = 100  # characters, without those of the modules above

# Attributes that change what a layer computes, by its class: the values that this project's networks have.
CONSTANTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "BatchNorm2d": {"eps": (1e-5,), "affine": (True,), "track_running_stats": (True,)},
    "CCBN": {"eps": (1e-5,)},
    "LeakyReLU": {"negative_slope": (0.2,)},
    "Upsample": {"mode": ("nearest",), "scale_factor": (2.0,)},
    "FeatureFusionBlock": {"align_corners": (True,)},
    "SynthesisBlock": {"architecture": ("skip",)},
    "SynthesisLayer": {"activation": ("lrelu",), "conv_clamp": (None, 256), "use_noise": (True,)},
    "ToRGBLayer": {"conv_clamp": (None, 256)},
    "DiscriminatorBlock": {"architecture": ("resnet",)},
    "DiscriminatorEpilogue": {"architecture": ("resnet",)},
    "MinibatchStdLayer": {"num_channels": (1,)},
    "Conv2dLayer": {"conv_clamp": (None, 256)},
}
# The same for layers whose place matters: the mapping network's.
MAPPING = {"activation": ("lrelu",), "bias_gain": (0.01,)}


class Foreign(ValueError):
    """A network of another kind than those that can be imported; the text says why."""


@dataclass(frozen=True)
class Network:
    """One network.

    classes     class name by path of a module, "" for the network itself
    attributes  of modules, by path
    tensors     parameters and buffers by name, as in a state dict
    parameters  number of trained or trainable numbers
    """

    classes: dict[str, str]
    attributes: dict[str, dict[Any, Any]]
    tensors: dict[str, Tensor]
    parameters: int

    @property
    def title(self) -> str:
        """Names of its class and of the one that does the work."""
        inner = self.classes.get("synthesis") or self.classes.get("discriminator")
        return printable(self.classes[""] + (f" ({inner})" if inner else ""), 60)

    def number(self, name: str) -> int | None:
        """The attribute `name` of the network, if it is an integer."""
        value = self.attributes[""].get(name)
        return value if type(value) is int else None

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        """Shape of a tensor; `Foreign` if it isn't there or hasn't that many dimensions."""
        if name not in self.tensors or len(self.tensors[name].shape) != dims:
            raise Foreign(f"{name} is missing or of another shape")
        return self.tensors[name].shape

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self.tensors


def is_network(value: Any) -> bool:
    """Whether `value` is a module of torch, official or not."""
    return isinstance(value, Inert) and all(
        isinstance(value.state.get(name), dict) for name in ("_parameters", "_buffers", "_modules"))


def read_network(root: Inert) -> Network:
    """The modules below `root`, in the order of a state dict; `Damaged` for a tree that isn't one."""
    classes, attributes, tensors = {}, {}, {}
    parameters = entries = 0
    todo: list[tuple[str, Inert, int]] = [("", root, 0)]
    while todo:
        path, module, depth = todo.pop()
        if depth > MAX_DEPTH or not is_network(module):
            raise Damaged("a network without end, or with something else in it")
        tables = [module.state[table] for table in ("_parameters", "_buffers", "_modules")]
        entries += sum(map(len, tables))
        if entries > MAX_ENTRIES:
            raise Damaged("a network without end")
        if not all(isinstance(name, str) and len(name) <= MAX_NAME for table in tables for name in table):
            raise Damaged("a parameter or layer with an unusual name")
        classes[path], attributes[path] = module.kind.name, module.state
        prefix = f"{path}." if path else ""
        hidden = module.state.get("_non_persistent_buffers_set")
        for table in ("_parameters", "_buffers"):
            for name, value in module.state[table].items():
                if not isinstance(value, Tensor | None):
                    raise Damaged("a parameter that is no tensor")
                if value is None or (table == "_buffers" and isinstance(hidden, set) and name in hidden):
                    continue
                tensors[prefix + name] = value
                parameters += value.count if table == "_parameters" else 0
        todo += [(f"{prefix}{name}", child, depth + 1)
                 for name, child in reversed(module.state["_modules"].items()) if child is not None]
    return Network(classes, attributes, tensors, parameters)


def odd_attribute(net: Network, skip: str = "") -> str | None:
    """The first attribute that makes `net` compute something else than its copy here would, in words.

    skip: path whose modules aren't copied.
    """
    for path, name in net.classes.items():
        if skip and path.startswith(skip):
            continue
        rules = MAPPING if re.fullmatch(r"mapping\.fc\d+", path) else CONSTANTS.get(name, {})
        for attribute, allowed in rules.items():
            if attribute in net.attributes[path]:
                value = net.attributes[path][attribute]
                if not any(_same(value, other) for other in allowed):
                    return f"{path}.{attribute} is {printable(str(value)) if _plain(value) else 'unusual'}"
    return None


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool, float))


def _same(value: Any, other: Any) -> bool:
    if type(value) in (int, float) and type(other) in (int, float):
        return math.isclose(value, other, rel_tol=1e-6)
    return type(value) is type(other) and value == other


def check_filters(net: Network) -> None:
    """`Foreign` unless StyleGAN2 resamples with the filter that it has here."""
    for name, tensor in net.tensors.items():
        if name.endswith(".resample_filter"):
            same = tensor.shape == (4, 4) and torch.allclose(tensor.values().float(), fir_filter(), atol=1e-6)
            if not same:
                raise Foreign(f"{name} is another filter than that of [1, 3, 3, 1]")


def unclamped(net: Network) -> bool:
    """Whether maps of this StyleGAN2 network are left unbounded, which here are clipped to ±256."""
    return any("conv_clamp" in values and values["conv_clamp"] is None for values in net.attributes.values())

