"""Official generators: which of this project's they are, and at what sizes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pg_modules.fastgan import CHANNELS
from training.official.names import Rename, fastgan_names, stylegan2_names
from training.official.networks import Foreign, Network, check_filters, odd_attribute, unclamped

UNCLAMPED = "its maps aren't bounded, here they are clipped to ±256; that matters only where they get so large"


@dataclass(frozen=True)
class Plan:
    """How a network is built here.

    generator  its name in the preset table
    options    keys of the preset table that give it its size
    classes    number of labels that it is told of, 0 for none
    rename     official names of tensors → ours
    notes      what a user should know
    """

    generator: str
    options: dict[str, Any]
    resolution: int
    channels: int
    classes: int
    rename: Rename
    notes: tuple[str, ...] = ()


def plan_generator(net: Network) -> Plan:
    """Kind by the class of the synthesis network, sizes by the shapes of tensors; `Foreign` for others."""
    synthesis = net.classes.get("synthesis")
    reason = odd_attribute(net)
    if reason is not None:
        raise Foreign(f"{reason}, which this project's generators can't reproduce")
    if synthesis in ("FastganSynthesis", "FastganSynthesisCond"):
        return _fastgan(net)
    if synthesis == "SynthesisNetwork" and net.has("synthesis.b4.const"):
        return _stylegan2(net)
    if synthesis == "SynthesisNetwork":
        raise Foreign("a SynthesisNetwork without a constant of 4x4 pixels, such as StyleGAN3's")
    what = "no module named synthesis" if synthesis is None else f"the unknown class {synthesis}"
    raise Foreign(f"{net.classes['']} has {what}; known are FastganSynthesis, FastganSynthesisCond and "
                  "SynthesisNetwork (of StyleGAN2)")


def _classes(net: Network, rows: int) -> int:
    """Number of labels. The official FastGAN has a table of 1000 rows for any number of them."""
    told = net.number("c_dim") or rows
    return told if 0 < told <= rows else rows


def _fastgan(net: Network) -> Plan:
    z_dim, wide = net.shape("synthesis.init.init.0.weight_orig", 4)[:2]
    channels, last = net.shape("synthesis.to_big.weight_orig", 4)[:2]
    ngf = int(wide / (2 * CHANNELS[4]))
    sides = [side for side, factor in CHANNELS.items() if max(int(factor * ngf), 1) == last]
    resolution = net.number("img_resolution") or max(sides, default=0)
    if resolution not in CHANNELS or resolution < 8:
        raise Foreign(f"images of side {resolution}")
    blocks = [side for side in CHANNELS if 4 < side <= resolution]
    full = [side for side in blocks if net.has(f"synthesis.feat_{side}.5.weight_orig")
            or net.has(f"synthesis.feat_{side}.conv2.weight_orig")]
    if full and full != blocks:
        raise Foreign("blocks of one and of two convolutions by turns, as in the first version of Projected GAN; here "
                      "all of them have two, or one (FastGAN-lite)")
    classes = 0
    if net.has("synthesis.embed.weight"):
        classes = _classes(net, net.shape("synthesis.embed.weight", 2)[0])
    return Plan("fastgan" if full else "fastgan_lite", {"z_dim": z_dim, "ngf": ngf}, resolution, channels, classes,
                fastgan_names(not full, resolution))


def _stylegan2(net: Network) -> Plan:
    check_filters(net)
    found = (re.fullmatch(r"synthesis\.b(\d{1,4})\.conv1\.weight", name) for name in net.tensors)
    widths = {side: net.shape(f"synthesis.b{side}.conv1.weight", 4)[0]
              for side in sorted(int(match[1]) for match in found if match)}
    resolution = max(widths, default=0)
    w_dim = net.shape("synthesis.b4.conv1.affine.weight", 2)[1]
    classes = net.shape("mapping.embed.weight", 2)[1] if net.has("mapping.embed.weight") else 0
    z_dim = net.shape("mapping.fc0.weight", 2)[1] - (w_dim if classes else 0)
    layers = sum(re.fullmatch(r"mapping\.fc\d+\.weight", name) is not None for name in net.tensors)
    options = {"z_dim": z_dim, "w_dim": w_dim, "map_depth": layers, **channel_rule(widths)}
    channels = net.shape(f"synthesis.b{resolution}.torgb.weight", 4)[0]
    return Plan("stylegan2", options, resolution, channels, classes, stylegan2_names,
                (UNCLAMPED,) if unclamped(net) else ())


def channel_rule(widths: dict[int, int]) -> dict[str, int]:
    """Channels by side, as min(base // side, max); `Foreign` if they or the sides don't follow that rule."""
    most = max(widths.values(), default=0)
    base = max((side * width for side, width in widths.items() if width < most), default=0)
    base = base or most * max(widths, default=0)
    if not most or any(side not in CHANNELS or min(base // side, most) != width for side, width in widths.items()):
        raise Foreign("a StyleGAN2 whose numbers of channels follow no rule")
    return {"cbase": base, "cmax": most}
