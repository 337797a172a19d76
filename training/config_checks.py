"""Whether the configuration in a checkpoint has all parts of a run's, each of its kind. What networks are made of is
checked where they are built (`dnnlib.construct`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from training.conditioning.base import Conditioning
from training.conditioning.dicgan import DiffusedInstance

_TABLES = ("G", "D", "conditioning", "d_noise", "loss", "optim", "data", "run")
_DATA: dict[str, type | tuple[type, ...]] = {
    "path": str, "name": str, "fingerprint": str, "resolution": int, "channels": int, "num_images": int,
    "label_dim": int, "aspect": (list, tuple), "mirror": bool, "use_labels": bool, "max_images": (int, type(None))}


def odd_part(config: Mapping[str, Any]) -> str | None:
    """The first part that is missing or of another kind, by its dotted name; None if there is none."""
    odd = next((name for name in _TABLES if not isinstance(config.get(name), dict)), None)
    if odd is not None:
        return odd
    data, optim = config["data"], config["optim"]
    for key, kind in _DATA.items():
        if key not in data or not isinstance(data[key], kind) or (isinstance(data[key], bool) and kind is int):
            return f"data.{key}"
    if len(data["aspect"]) != 2 or not all(side in (1, 2) for side in data["aspect"]):
        return "data.aspect"
    for key in ("eps", "glr", "dlr"):
        if not _is_number(optim.get(key)):
            return f"optim.{key}"
    for key in ("g_betas", "d_betas"):
        betas = optim.get(key)
        if not isinstance(betas, (list, tuple)) or len(betas) != 2 or not all(map(_is_number, betas)):
            return f"optim.{key}"
    return None if type(config.get("freeze_d")) is int else "freeze_d"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0 and math.isfinite(value)


def fits(spec: Mapping[str, Any], G: Any, conditioning: Any) -> bool:
    """Whether the generator `G`, built of `spec`, takes the classes and latents that `conditioning` tells it."""
    if not isinstance(conditioning, Conditioning) or not hasattr(G, "has_mapping"):
        return False
    parts, h_channels = spec.get("c_parts") or {}, spec.get("h_channels", 0)
    width = 0 if G.encoder is None else G.encoder.latent_shape[0]
    told = (0, width) if isinstance(conditioning, DiffusedInstance) else (width, 0)
    return (parts.get("label", 0) == conditioning.classes and conditioning.uses_latents == (G.encoder is not None)
            and (parts.get("instance", 0), h_channels) == told)
