"""Names of the official networks' tensors, translated to this project's.

For each network there is a function that takes an official name and returns ours, or None for tensors that take no
part here: constants, blocks that were never used, the frozen network of D. It raises KeyError for unknown names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from torch_utils.inert_data import printable

Rename = Callable[[str], str | None]
Rules = list[tuple[str, str]]


class Shaped(Protocol):
    """A tensor, or the description of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


T = TypeVar("T", bound=Shaped)

# The first pattern that matches the whole name decides.
_FASTGAN: Rules = [
    (r"synthesis\.init\.init\.0\.(.+)", r"init.conv.\1"),
    (r"synthesis\.init\.init\.1\.(.+)", r"init.norm.\1"),
    (r"synthesis\.se_(\d+)\.main\.1\.(.+)", r"skips.\1.conv1.\2"),
    (r"synthesis\.se_(\d+)\.main\.3\.(.+)", r"skips.\1.conv2.\2"),
    (r"synthesis\.to_big\.(.+)", r"to_rgb.\1"),
    (r"synthesis\.embed\.weight", r"embed.embeds.label.weight"),
    # Conditional blocks: lite ones have one conv and bn, full ones conv1, conv2, bn1, bn2 and one noise.
    (r"synthesis\.feat_(\d+)\.conv1?\.(.+)", r"blocks.\1.conv1.\2"),
    (r"synthesis\.feat_(\d+)\.conv2\.(.+)", r"blocks.\1.conv2.\2"),
    (r"synthesis\.feat_(\d+)\.noise\.weight", r"blocks.\1.noise1.weight"),
    (r"synthesis\.feat_(\d+)\.bn1?\.stored_(mean|var)", r"blocks.\1.norm1.norm.running_\2"),
    (r"synthesis\.feat_(\d+)\.bn1?\.(gain|bias)\.(.+)", r"blocks.\1.norm1.\2.\3"),
    (r"synthesis\.feat_(\d+)\.bn2\.stored_(mean|var)", r"blocks.\1.norm2.norm.running_\2"),
    (r"synthesis\.feat_(\d+)\.bn2\.(gain|bias)\.(.+)", r"blocks.\1.norm2.\2.\3"),
    # Unconditional blocks are numbered; both kinds start alike.
    (r"synthesis\.feat_(\d+)\.1\.(.+)", r"blocks.\1.conv1.\2"),
]
_FULL_BLOCK: Rules = [
    (r"synthesis\.feat_(\d+)\.2\.weight", r"blocks.\1.noise1.weight"),
    (r"synthesis\.feat_(\d+)\.3\.(.+)", r"blocks.\1.norm1.norm.\2"),
    (r"synthesis\.feat_(\d+)\.5\.(.+)", r"blocks.\1.conv2.\2"),
    (r"synthesis\.feat_(\d+)\.6\.weight", r"blocks.\1.noise2.weight"),
    (r"synthesis\.feat_(\d+)\.7\.(.+)", r"blocks.\1.norm2.norm.\2"),
]
_LITE_BLOCK: Rules = [(r"synthesis\.feat_(\d+)\.2\.(.+)", r"blocks.\1.norm1.norm.\2")]

_PROJECTED_D: Rules = [
    (r"feature_network\.pretrained\..+", ""),
    (r"feature_network\.scratch\.layer(\d)_ccm\.(.+)", r"projector.ccm.\1.\2"),
    (r"feature_network\.scratch\.layer(\d)_csm\.out_conv\.(.+)", r"projector.csm.\1.conv.\2"),
    # Down-blocks, separable or not.
    (r"discriminator\.mini_discs\.(\d)\.main\.(\d)\.main\.0\.depthwise\.(.+)", r"heads.\1.down.\2.0.\3"),
    (r"discriminator\.mini_discs\.(\d)\.main\.(\d)\.main\.0\.pointwise\.(.+)", r"heads.\1.down.\2.1.\3"),
    (r"discriminator\.mini_discs\.(\d)\.main\.(\d)\.main\.0\.(.+)", r"heads.\1.down.\2.0.\3"),
    # The last convolution.
    (r"discriminator\.mini_discs\.(\d)\.main\.\d\.(weight_\w+)", r"heads.\1.cls.\2"),
    (r"discriminator\.mini_discs\.(\d)\.cls\.(.+)", r"heads.\1.cls.\2"),
    (r"discriminator\.mini_discs\.(\d)\.embed\.weight", r"heads.\1.project.project.label.embed.weight"),
    (r"discriminator\.mini_discs\.(\d)\.embed_proj\.0\.(.+)", r"heads.\1.project.project.label.linear.\2"),
]
_D_NORM = r"discriminator\.mini_discs\.(\d)\.main\.(\d)\.main\.1\.(.+)"  # behind one or two convolutions

_STYLEGAN2: Rules = [
    (r".+\.resample_filter", ""),
    (r"synthesis\.b(\d+)\.const", r"blocks.\1.const"),
    (r"synthesis\.b(\d+)\.(conv\d)\.noise_strength", r"blocks.\1.\2.noise.weight"),
    (r"synthesis\.b(\d+)\.(conv\d)\.(.+)", r"blocks.\1.\2.\3"),
    (r"synthesis\.b(\d+)\.torgb\.(.+)", r"blocks.\1.to_rgb.\2"),
    (r"mapping\.w_avg", r"mapping.w_avg"),
    (r"mapping\.embed\.(.+)", r"mapping.embeds.label.\1"),
    (r"mapping\.fc(\d+)\.(.+)", r"mapping.layers.\1.\2"),
]
_STYLEGAN2_D: Rules = [
    (r".+\.resample_filter", ""),
    (r"b4\.conv\.(weight|bias)", r"conv.\1"),
    (r"b4\.fc\.(weight|bias)", r"dense.\1"),
    (r"mapping\.embed\.(.+)", r"map.embeds.label.\1"),
    (r"mapping\.fc(\d+)\.(.+)", r"map.layers.\1.\2"),
]


def _apply(name: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            name = match.expand(replacement)
            break
    else:
        raise KeyError(name)
    for suffix, own in (("weight_orig", "weight"), ("weight_u", "u"), ("weight_v", "v")):
        name = re.sub(rf"\b{suffix}$", own, name)
    return name or None


def fastgan_names(lite: bool, resolution: int) -> Rename:
    """Of a FastGAN that makes images of side `resolution`; official ones below 256 px carry larger blocks."""
    rules = [*_FASTGAN, *(_LITE_BLOCK if lite else _FULL_BLOCK)]

    def rename(name: str) -> str | None:
        side = re.match(r"synthesis\.(?:feat|se)_(\d+)\.", name)
        return None if side and int(side[1]) > resolution else _apply(name, rules)

    return rename


def projected_d_names(separable: bool) -> Rename:
    """Of a projected discriminator with separable heads or others."""
    rules = [(_D_NORM, rf"heads.\1.down.\2.{2 if separable else 1}.\3"), *_PROJECTED_D]
    return lambda name: _apply(name, rules)


def stylegan2_names(name: str) -> str | None:
    """Of a StyleGAN2 generator; a `Rename` itself."""
    return _apply(name, _STYLEGAN2)


def stylegan2_d_names(resolution: int, classes: int) -> Rename:
    """Of StyleGAN2-ADA's discriminator for images of side `resolution`; with classes, its last layer projects."""
    out = (r"b4\.out\.(weight|bias)", r"project.\1" if classes else r"score.\1")
    first = (rf"b{resolution}\.fromrgb\.(weight|bias)", r"from_rgb.\1")

    def rename(name: str) -> str | None:
        block = re.fullmatch(r"b(\d+)\.(conv0|conv1|skip)\.(weight|bias)", name)
        if block and 4 < int(block[1]) <= resolution:
            index = (resolution // int(block[1])).bit_length() - 1
            return f"blocks.{index}.{block[2]}.{block[3]}"
        return _apply(name, [out, first, *_STYLEGAN2_D])

    return rename


def own_names(state: Mapping[str, T], rename: Rename) -> dict[str, T]:
    """The tensors that take part, by our names; KeyError for an unknown one."""
    return {own: value for name, value in state.items() if (own := rename(name)) is not None}


def misfit(net: nn.Module, state: Mapping[str, Any]) -> str | None:
    """What keeps `state` (our names) from filling `net`, in words; None if it fits.

    The official conditional norm doesn't count batches, and a noise weight has no dimension there.
    """
    expected = net.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in expected]
    odd = [name for name, value in state.items()
           if name in expected and (tuple(value.shape) or (1,)) != (tuple(expected[name].shape) or (1,))]
    if not (missing or unknown or odd):
        return None
    parts = [(missing, "missing"), (unknown, "too many"), (odd, "of another shape")]
    return ", ".join(f"{len(names)} tensors {what} ({printable(names[0])})" for names, what in parts if names)


def fill(net: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Loads tensors (our names) into `net`; ValueError with the reason of `misfit`."""
    reason = misfit(net, state)
    if reason is not None:
        raise ValueError(reason)
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    net.load_state_dict({name: value.reshape(shapes[name]) for name, value in state.items()}, strict=False)
