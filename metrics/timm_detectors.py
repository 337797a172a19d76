"""Detectors that are timm networks with weights that the user brings: SwAV, CLIP, or any by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from dnnlib import UserError
from metrics import weights

PREFIX = "timm:"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_OPENAI = (("conv1", "patch_embed.proj"), ("positional_embedding", "pos_embed"), ("transformer.resblocks", "blocks"),
           ("ln_pre", "norm_pre"), ("ln_post", "norm"), ("ln_", "norm"), ("in_proj_", "qkv."), ("out_proj", "proj"),
           ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"))


@dataclass(frozen=True)
class Known:
    """A detector with a name of its own.

    timm_name  architecture
    remedy     what to fetch
    words      what its features are, for `comparability`
    projected  whether the features are the network's output and not what goes into its last layer
    """

    timm_name: str
    remedy: str
    words: str
    projected: bool = False


KNOWN = {
    "swav": Known(
        "resnet50",
        "fetch swav_800ep_pretrain.pth.tar (ResNet-50, named in the README of github.com/facebookresearch/swav) and "
        "name it with --weights FILE",
        "SwAV-FID: ResNet-50 features trained by SwAV (Morozov et al. 2021)"),
    "clip": Known(
        "vit_base_patch32_clip_quickgelu_224",
        "fetch the state dict of OpenAI's CLIP ViT-B/32 (timm's vit_base_patch32_clip_quickgelu_224.openai, or the "
        "image half of OpenAI's model with its names, visual.*) and name it with --weights FILE",
        "CLIP-FID: image embeddings of CLIP ViT-B/32 (Kynkäänniemi et al. 2022)", projected=True),
}


def is_known(name: str) -> bool:
    """Whether `name` is of this module."""
    return name in KNOWN or name.startswith(PREFIX)


def spec(name: str) -> Known:
    """The entry of `name`; for ``timm:NAME`` one of its own."""
    if name in KNOWN:
        return KNOWN[name]
    inner = name.removeprefix(PREFIX)
    return Known(inner, f"fetch the state dict of timm's {inner} and name it with --weights FILE",
                 f"features of timm's {inner}")


def check_weights(name: str, path: str | os.PathLike | None) -> None:
    """`UserError` saying what to fetch when no file is named or it isn't there."""
    weights.check(path, name, spec(name).remedy)


@dataclass(frozen=True)
class Loaded:
    """Images in [0, 255] to features ``[n, feature_dim]`` at `resolution`; `head` as in `metrics.detectors`."""

    pooled: Callable[[torch.Tensor], torch.Tensor]
    feature_dim: int
    resolution: int
    head: Callable[[torch.Tensor], torch.Tensor] | None


def load(name: str, path: str | os.PathLike, device: torch.device) -> Loaded:
    """The network of `name` with the weights in `path`, frozen.

    Raises `UserError` for an unknown network and for a file that is unreadable or doesn't fit it.
    """
    import timm

    known = spec(name)
    if not timm.is_model(known.timm_name):
        raise UserError(f"--detector {name}: timm has no network of this name; see timm.list_models().")
    state = _own_layout(name, weights.read_state(path, known.remedy))
    config: Any = timm.get_pretrained_cfg(known.timm_name)
    classifier = state.get(f"{config.classifier}.weight")
    net: Any = timm.create_model(known.timm_name, num_classes=0 if classifier is None else len(classifier))
    own = net.state_dict()
    missing, surplus = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or surplus or wrong:
        raise UserError(f"--weights {path} does not fit {known.timm_name}: {len(missing)} tensors missing, "
                        f"{len(surplus)} unknown, {len(wrong)} of another shape (first: "
                        f"{(missing or surplus or wrong)[0]}); {known.remedy}.")
    net.load_state_dict(state)
    net = net.eval().requires_grad_(False).to(device)
    mean, std = _IMAGENET if name == "swav" else (config.mean, config.std)
    shift, scale = (torch.tensor(values, device=device).reshape(1, 3, 1, 1) * 255 for values in (mean, std))

    def pooled(x: torch.Tensor) -> torch.Tensor:
        x = (x - shift) / scale
        return net(x) if known.projected else net.forward_head(net.forward_features(x), pre_logits=True)

    side = int(config.input_size[-1])
    with torch.inference_mode():
        width = pooled(torch.zeros(1, 3, side, side, device=device)).shape[1]
    if classifier is None or known.projected:
        return Loaded(pooled, width, side, None)
    weight, bias = classifier.float(), state[f"{config.classifier}.bias"].float()
    return Loaded(pooled, width, side, lambda f: F.linear(f, weight, bias))


def _own_layout(name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` without what training left around the network."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if name == "swav":
        return {key: value for key, value in state.items() if not key.startswith(("projection_head.", "prototypes."))}
    if name == "clip" and "visual.class_embedding" in state:
        return _from_openai({key.removeprefix("visual."): value for key, value in state.items()
                             if key.startswith("visual.")})
    return state


def _from_openai(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's image half of CLIP in timm's names; its file may be in half precision."""
    found = {}
    for key, value in state.items():
        for theirs, ours in _OPENAI:
            key = key.replace(theirs, ours)
        found[key] = value.float()
    found["cls_token"] = found.pop("class_embedding").reshape(1, 1, -1)
    found["pos_embed"] = found["pos_embed"][None]
    if "proj" in found:
        found["head.weight"] = found.pop("proj").T.contiguous()
        found["head.bias"] = torch.zeros(len(found["head.weight"]))
    return found
