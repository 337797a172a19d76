"""Pickles as the official code writes them, of classes in modules that are gone when they are read."""

from __future__ import annotations

import pickle
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pg_modules.backbones import backbone_state

MODULE = "vanished_networks"
BUFFERS = re.compile(r".*(weight_u|weight_v|running_mean|running_var|stored_mean|stored_var|num_batches_tracked|"
                     r"resample_filter|noise_const|w_avg)")
# Class names by path; all other modules are of a class that means nothing.
FASTGAN = {"": "Generator", "mapping": "DummyMapping", "synthesis": "FastganSynthesis"}
FASTGAN_COND = {**FASTGAN, "synthesis": "FastganSynthesisCond"}
STYLEGAN2 = {"": "Generator", "mapping": "MappingNetwork", "synthesis": "SynthesisNetwork"}
STYLEGAN2_D = {"": "Discriminator", "b4": "DiscriminatorEpilogue", "b4.mbstd": "MinibatchStdLayer"}
PROJECTED_D = {"": "ProjectedDiscriminator", "discriminator": "MultiScaleD", "feature_network": "F_RandomProj"}


class Gone:
    """A module of classes that exists while the context lasts."""

    def __init__(self, source: str | None = None) -> None:
        """source: classes pickle themselves with this source text, as StyleGAN2's do."""
        self.source, self.module = source, types.ModuleType(MODULE)

    def __enter__(self) -> Gone:
        sys.modules[MODULE] = self.module
        if self.source is not None:
            def rebuild(meta: dict[str, Any]) -> None:
                raise AssertionError("never called")

            rebuild.__name__ = rebuild.__qualname__ = "_reconstruct_persistent_obj"
            rebuild.__module__ = MODULE
            self.module._reconstruct_persistent_obj = rebuild  # type: ignore[attr-defined]
        return self

    def __exit__(self, *error: object) -> None:
        del sys.modules[MODULE]

    def cls(self, name: str) -> type[nn.Module]:
        """The class `name` of the module."""
        if not hasattr(self.module, name):
            body: dict[str, Any] = {"__module__": MODULE}
            if self.source is not None:
                body["__reduce__"] = lambda net: (self.module._reconstruct_persistent_obj, ({
                    "type": "class", "version": 6, "module_src": self.source, "class_name": name,
                    "state": net.__dict__},))
            setattr(self.module, name, type(name, (nn.Module,), body))
        return getattr(self.module, name)

    def network(self, tensors: Mapping[str, torch.Tensor], classes: Mapping[str, str],
                attributes: Mapping[str, Mapping[str, Any]] | None = None) -> nn.Module:
        """Modules that hold `tensors`; attributes: by path."""
        root = self.cls(classes[""])()
        for name in [*(f"{path}.x" for path in classes if path), *tensors]:
            *path, leaf = name.split(".")
            module = root
            for depth, part in enumerate(path):
                if part not in module._modules:
                    module.add_module(part, self.cls(classes.get(".".join(path[:depth + 1]), "Part"))())
                module = getattr(module, part)
            if name in tensors and BUFFERS.fullmatch(name):
                module.register_buffer(leaf, tensors[name])
            elif name in tensors:
                module.register_parameter(leaf, nn.Parameter(tensors[name], requires_grad=False))
        for path, values in (attributes or {}).items():
            vars(root.get_submodule(path)).update(values)
        return root


def write(path: Path, content: Any, form: str = "pickle") -> Path:
    """Stores `content` as plain ``pickle``, old ``protocol2``, or in torch's ``zip`` or ``legacy`` format."""
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(content, protocol=2 if form == "protocol2" else 4))
    return path


def frozen_network(zero_pass: bool) -> dict[str, torch.Tensor]:
    """The tensors of D's frozen network by official names."""
    stages = ("layer0", "layer0", "layer1", "layer2", "layer2", "layer3", "layer3")
    tensors = {}
    for name, value in backbone_state("tf_efficientnet_lite0", zero_pass).items():
        first, rest = name.split(".", 1)
        if first == "blocks":
            stage, rest = rest.split(".", 1)
            tensors[f"feature_network.pretrained.{stages[int(stage)]}.{int(stage) + 3}.{rest}"] = value
        elif first in ("conv_stem", "bn1"):
            tensors[f"feature_network.pretrained.layer0.{('conv_stem', 'bn1').index(first)}.{rest}"] = value
    return tensors


def stylegan2_tensors(net: nn.Module) -> dict[str, torch.Tensor]:
    """The state of one of our StyleGAN2 generators by official names."""
    tensors = {}
    for name, value in net.state_dict().items():
        name = re.sub(r"^blocks\.(\d+)", r"synthesis.b\1", name).replace("to_rgb", "torgb")
        name = re.sub(r"mapping\.layers\.", "mapping.fc", name).replace("embeds.label", "embed")
        if name.endswith("noise.weight"):
            name, value = name.replace("noise.weight", "noise_strength"), value.reshape(())
        tensors[name] = value.clone()
    return tensors


def stylegan2_d_tensors(resolution: int, base: int, most: int, classes: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors of an official StyleGAN2-ADA discriminator."""
    draw = torch.Generator().manual_seed(1)
    width = {side: min(base // side, most) for side in (4, 8, 16, 32, 64)}
    shapes: dict[str, tuple[int, ...]] = {f"b{resolution}.fromrgb.weight": (width[resolution], 3, 1, 1),
                                          f"b{resolution}.fromrgb.bias": (width[resolution],)}
    side = resolution
    while side > 4:
        now, then = width[side], width[side // 2]
        shapes |= {f"b{side}.conv0.weight": (now, now, 3, 3), f"b{side}.conv0.bias": (now,),
                   f"b{side}.conv1.weight": (then, now, 3, 3), f"b{side}.conv1.bias": (then,),
                   f"b{side}.skip.weight": (then, now, 1, 1)}
        side //= 2
    last, out = width[4], width[4] if classes else 1
    shapes |= {"b4.conv.weight": (last, last + 1, 3, 3), "b4.conv.bias": (last,), "b4.fc.weight": (last, 16 * last),
               "b4.fc.bias": (last,), "b4.out.weight": (out, last), "b4.out.bias": (out,)}
    if classes:
        shapes |= {"mapping.embed.weight": (last, classes), "mapping.embed.bias": (last,),
                   "mapping.fc0.weight": (last, last), "mapping.fc0.bias": (last,)}
    return {name: torch.randn(shape, generator=draw) * (100 if name.startswith("mapping.fc") else 1)
            for name, shape in shapes.items()}
