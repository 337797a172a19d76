"""Official discriminators: which of this project's they are, at what sizes, and what their frozen network is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch

from pg_modules.backbones import backbone_state
from training.official.generators import UNCLAMPED, Plan, channel_rule
from training.official.names import Rename, projected_d_names, stylegan2_d_names
from training.official.networks import Foreign, Network, check_filters, odd_attribute, unclamped

BACKBONE = "tf_efficientnet_lite0"
FROZEN = "feature_network.pretrained"
HEAD = "discriminator.mini_discs"
TAIL = ("conv_head.", "bn2.", "classifier.")  # of the frozen network, of which D keeps the rest


@dataclass(frozen=True)
class DPlan:
    """How a discriminator is built here: the preset whose D it is, keys of its row, and of the configuration of D."""

    presets: dict[str, str]  # by generator
    rename: Rename
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plan_discriminator(net: Network, generator: Plan) -> DPlan:
    """Kind by class, sizes by shapes; `Foreign` for others and for those that don't go with the generator."""
    reason = odd_attribute(net, skip=FROZEN)
    if reason is not None:
        raise Foreign(f"{reason}, which this project's discriminators can't reproduce")
    if net.classes[""] == "ProjectedDiscriminator" and net.classes.get("discriminator") == "MultiScaleD":
        return _projected(net, generator)
    if net.classes.get("b4") == "DiscriminatorEpilogue":
        return _stylegan2(net, generator)
    raise Foreign(f"the unknown class {net.classes['']}; known are ProjectedDiscriminator and StyleGAN2's "
                  "Discriminator")


def _projected(net: Network, generator: Plan) -> DPlan:
    heads = sum(re.fullmatch(rf"{re.escape(HEAD)}\.\d", path) is not None for path in net.classes)
    conditional = net.has(f"{HEAD}.0.embed.weight")
    if conditional != bool(generator.classes):
        raise Foreign("one of G and D is told of classes and the other isn't")
    separable = net.has(f"{HEAD}.0.main.0.main.0.depthwise.weight_orig")
    mixing = [part for part in ("ccm", "csm.out_conv") if net.has(f"feature_network.scratch.layer0_{part}.weight")]
    config: dict[str, Any] = {"proj_type": len(mixing), "num_discs": heads}
    if mixing:
        cout, wider = (net.shape(f"feature_network.scratch.layer{k}_ccm.weight", 4)[0] for k in (0, 1))
        config |= {"cout": cout, "expand": wider == 2 * cout}
    native = net.attributes[""].get("interp224") is False
    options: dict[str, Any] = {"separable": separable, "d_input": generator.resolution if native else 224}
    if net.attributes[""].get("diffaug") is False:
        options["diffaug"] = ""
    return DPlan({name: name for name in ("fastgan", "fastgan_lite", "stylegan2")}, projected_d_names(separable),
                 options, {**config, "official_zero_pass": _zero_pass(net)})


def _zero_pass(net: Network) -> bool:
    """Whether the frozen network has the statistics of the official constructor (True) or the published ones (False).

    `Foreign` if it is another network.
    """
    # Statistics of another machine's forward pass differ by rounding; the pass itself moves them by a tenth.
    theirs = [tensor.values() for name, tensor in net.tensors.items()
              if name.startswith(f"{FROZEN}.") and not name.endswith("num_batches_tracked")]
    for zero_pass in (True, False):
        state = backbone_state(BACKBONE, zero_pass)
        ours = [value for name, value in state.items()
                if not name.startswith(TAIL) and not name.endswith("num_batches_tracked")]
        if len(ours) == len(theirs) and all(
                a.shape == b.shape and torch.allclose(a, b.to(a), rtol=1e-3, atol=1e-4)
                for a, b in zip(ours, theirs, strict=True)):
            return zero_pass
    raise Foreign(f"its frozen network isn't the published {BACKBONE}")


def _stylegan2(net: Network, generator: Plan) -> DPlan:
    if generator.generator != "stylegan2":
        raise Foreign("a StyleGAN2 discriminator beside a FastGAN")
    check_filters(net)
    found = (re.fullmatch(r"b(\d{1,4})\.conv0\.weight", name) for name in net.tensors)
    sides = sorted(int(match[1]) for match in found if match)
    if not sides or sides[-1] != generator.resolution:
        raise Foreign("a discriminator for images of another size")
    widths = {side: net.shape(f"b{side}.conv0.weight", 4)[0] for side in sides}
    widths[4] = net.shape("b4.fc.weight", 2)[0]
    rule = channel_rule(widths)
    config: dict[str, Any] = {"channel_base": rule["cbase"], "channel_max": rule["cmax"]}
    group = net.attributes.get("b4.mbstd", {}).get("group_size")
    if type(group) is not int or group < 1:
        raise Foreign("minibatch statistics of no fixed number of images")
    config["mbstd_group_size"] = group
    classes = net.shape("mapping.embed.weight", 2)[1] if net.has("mapping.embed.weight") else 0
    if classes != generator.classes:
        raise Foreign("one of G and D is told of classes and the other isn't, or of others")
    if classes:
        layers = sum(re.fullmatch(r"mapping\.fc\d+\.weight", name) is not None for name in net.tensors)
        config |= {"map_layers": layers, "cmap_dim": net.shape("b4.out.weight", 2)[0]}
    return DPlan({"stylegan2": "stylegan2_ada"}, stylegan2_d_names(generator.resolution, classes), {}, config,
                 (UNCLAMPED,) if unclamped(net) else ())
