"""Names of the official Projected GAN's parameters and buffers, translated to this project's."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

# Tried in order on the whole name; the first that matches decides.
_GENERATOR = [
    (r"synthesis\.init\.init\.0\.(.+)", r"init.conv.\1"),
    (r"synthesis\.init\.init\.1\.(.+)", r"init.norm.\1"),
    (r"synthesis\.se_(\d+)\.main\.1\.(.+)", r"skips.\1.conv1.\2"),
    (r"synthesis\.se_(\d+)\.main\.3\.(.+)", r"skips.\1.conv2.\2"),
    (r"synthesis\.to_big\.(.+)", r"to_rgb.\1"),
    (r"synthesis\.embed\.weight", r"embed.embeds.label.weight"),
    # conditional blocks
    (r"synthesis\.feat_(\d+)\.conv\.(.+)", r"blocks.\1.conv1.\2"),
    (r"synthesis\.feat_(\d+)\.bn\.stored_(mean|var)", r"blocks.\1.norm1.norm.running_\2"),
    (r"synthesis\.feat_(\d+)\.bn\.(gain|bias)\.(.+)", r"blocks.\1.norm1.\2.\3"),
    # both kinds of unconditional blocks start alike
    (r"synthesis\.feat_(\d+)\.1\.(.+)", r"blocks.\1.conv1.\2"),
]
_FULL_BLOCK = [
    (r"synthesis\.feat_(\d+)\.2\.weight", r"blocks.\1.noise1.weight"),
    (r"synthesis\.feat_(\d+)\.3\.(.+)", r"blocks.\1.norm1.norm.\2"),
    (r"synthesis\.feat_(\d+)\.5\.(.+)", r"blocks.\1.conv2.\2"),
    (r"synthesis\.feat_(\d+)\.6\.weight", r"blocks.\1.noise2.weight"),
    (r"synthesis\.feat_(\d+)\.7\.(.+)", r"blocks.\1.norm2.norm.\2"),
]
_LITE_BLOCK = [(r"synthesis\.feat_(\d+)\.2\.(.+)", r"blocks.\1.norm1.norm.\2")]

_DISCRIMINATOR = [
    (r"feature_network\.scratch\.layer(\d)_ccm\.(.+)", r"projector.ccm.\1.\2"),
    (r"feature_network\.scratch\.layer(\d)_csm\.out_conv\.(.+)", r"projector.csm.\1.conv.\2"),
    (r"discriminator\.mini_discs\.(\d)\.main\.(\d)\.main\.0\.depthwise\.(.+)", r"heads.\1.down.\2.0.\3"),
    (r"discriminator\.mini_discs\.(\d)\.main\.(\d)\.main\.0\.pointwise\.(.+)", r"heads.\1.down.\2.1.\3"),
    (r"discriminator\.mini_discs\.(\d)\.main\.(\d)\.main\.1\.(.+)", r"heads.\1.down.\2.2.\3"),
    (r"discriminator\.mini_discs\.(\d)\.main\.\d\.(.+)", r"heads.\1.cls.\2"),
    (r"discriminator\.mini_discs\.(\d)\.cls\.(.+)", r"heads.\1.cls.\2"),
    (r"discriminator\.mini_discs\.(\d)\.embed\.weight", r"heads.\1.project.project.label.embed.weight"),
    (r"discriminator\.mini_discs\.(\d)\.embed_proj\.0\.(.+)", r"heads.\1.project.project.label.linear.\2"),
]

_BUFFERS = re.compile(r".*(weight_u|weight_v|running_mean|running_var|stored_mean|stored_var|num_batches_tracked)")


def _translate(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            name = match.expand(replacement)
            break
    else:
        raise KeyError(name)
    for suffix, own in (("weight_orig", "weight"), ("weight_u", "u"), ("weight_v", "v")):
        name = re.sub(rf"\b{suffix}$", own, name)
    return name


def generator_name(name: str, lite: bool) -> str:
    """Ours for the official name of a FastGAN's tensor."""
    return _translate(name, [*_GENERATOR, *(_LITE_BLOCK if lite else _FULL_BLOCK)])


def discriminator_name(name: str, lite: bool = False) -> str:
    """Ours for the official name of a tensor of a projected discriminator with separable heads."""
    return _translate(name, _DISCRIMINATOR)


def is_parameter(name: str) -> bool:
    """Whether the official tensor `name` is a parameter."""
    return _BUFFERS.fullmatch(name) is None


def load_official(net: torch.nn.Module, state: dict[str, torch.Tensor], translate, lite: bool = False,
                  unused: str = r"$^") -> None:
    """Fills all of `net` from an official state dict, whose names matching `unused` are left out."""
    own = {translate(name, lite): value for name, value in state.items() if not re.search(unused, name)}
    missing, unexpected = net.load_state_dict(own, strict=False)
    assert not unexpected, unexpected
    # The official conditional norm doesn't count batches.
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
