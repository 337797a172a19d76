"""Frozen networks whose pooled features the metrics compare, and the one resize in front of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dnnlib import UserError, content_hash
from metrics import inception, timm_detectors
from pg_modules.backbones import load_backbone

DEFAULT = "efficientnet_lite2"
NAMES = (DEFAULT, "inception")
CHOICES = f"{DEFAULT}, inception, swav, clip or timm:NAME"
LITE2_RESOLUTION = 192


@dataclass(frozen=True)
class Detector:
    """Images to feature vectors.

    name           as on the command line
    network        the frozen network, as the backbone manifest names it where it is in there
    weights_hash   SHA-256 of its weights file
    feature_dim    D
    resolution     side in pixels to which every image is brought
    device         where it runs
    pooled         float images ``[n, 3, resolution, resolution]`` in [0, 255] to ``[n, D]``
    head           features ``[n, D]`` on the CPU to class logits ``[n, K]``; None without a classifier
    """

    name: str
    network: str
    weights_hash: str
    feature_dim: int
    resolution: int
    device: torch.device
    pooled: Callable[[torch.Tensor], torch.Tensor]
    head: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def resize(self) -> str:
        """The resize in words, for provenance and cache keys."""
        return f"bicubic, antialiased, clamped to 0..255, to {self.resolution} x {self.resolution}"

    @property
    def comparability(self) -> str:
        """What the numbers may be compared with; part of every result."""
        if self.name == "inception":
            return "Inception-v3 features of the FID layout, resized by this project's antialiased filter"
        if timm_detectors.is_known(self.name):
            return (f"{timm_detectors.spec(self.name).words}, resized by this project's antialiased filter: not "
                    "comparable with FID or KID in Inception-v3 features")
        return "EfficientNet-Lite2 features: not comparable with FID or KID in Inception-v3 features"

    @torch.inference_mode()
    def __call__(self, img_u8: torch.Tensor) -> torch.Tensor:
        """Features ``[n, D]`` float32 on the CPU of ``img_u8`` uint8 ``[n, 3 or 1, H, W]``, of any size.

        Grey images count as colour images with three equal channels. `UserError` for features that are no numbers.
        """
        assert img_u8.dtype == torch.uint8, img_u8.dtype
        assert img_u8.ndim == 4, tuple(img_u8.shape)
        assert img_u8.shape[1] in (1, 3), tuple(img_u8.shape)
        img_u8 = img_u8.to(self.device)
        x = resize_images(img_u8.repeat(1, 3, 1, 1) if img_u8.shape[1] == 1 else img_u8, self.resolution)
        # TF32 would make features depend on the GPU's generation in the fourth digit.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
            features = self.pooled(x.contiguous(memory_format=torch.channels_last)).float().cpu()
        if not features.isfinite().all():
            raise UserError(f"--detector {self.name}: its features are not finite numbers; the file of its weights is "
                            "damaged, fetch it again.")
        return features


def resize_images(img_u8: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 ``[n, 3, H, W]`` to float ``[n, 3, size, size]`` in [0, 255]; the aspect ratio is not kept.

    One antialiased bicubic filter for all sources: images of `size` stay as they are. Overshoot is clamped.
    """
    x = img_u8.float()
    if x.shape[-2:] == (size, size):
        return x
    if x.device.type == "mps":  # the antialiased filter has no kernel there
        return resize_images(img_u8.cpu(), size).to(x.device)
    return F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp_(0, 255)


def check_detector(name: str, weights: str | os.PathLike | None = None) -> None:
    """Refuses an unknown detector and a weights file that it doesn't take, before anything is loaded."""
    if name == "inception":
        inception.check_weights(weights)
    elif timm_detectors.is_known(name):
        timm_detectors.check_weights(name, weights)
    elif name != DEFAULT:
        raise UserError(f"--detector {name}: choose {CHOICES}.")
    elif weights is not None:
        raise UserError(f"--weights {weights}: {name} brings its own; leave it out or use --detector inception.")


def check_not_own(detector: str, *networks: str) -> None:
    """Refuses to judge a generator by one of the frozen `networks` that it was trained with.

    networks: as the backbone manifest names them: what its discriminator looks through, what gives its instance
    conditions.
    """

    def own(name: str) -> str | None:
        inner = name.removeprefix(timm_detectors.PREFIX)
        return next((n for n in networks if n in (inner, f"tf_{inner}") or (
            name == "inception" and "inception_v3" in n)), None)

    if own(detector) is not None:
        others = [name for name in NAMES if own(name) is None]
        remedy = f"use --detector {others[0]}" if others else "no detector is left that it wasn't trained on"
        raise UserError(f"--detector {detector}: this network was trained on {own(detector)} itself, so the result "
                        f"would flatter it; {remedy}.")


def load_detector(
    name: str = DEFAULT, weights: str | os.PathLike | None = None, device: torch.device | str = "cpu"
) -> Detector:
    """The detector `name`; `weights` is the file of every other than the default.

    Raises `UserError` for an unknown name and for weights that are absent or don't fit.
    """
    check_detector(name, weights)
    device = torch.device(device)
    if name == "inception":
        assert weights is not None
        net, classifier = inception.load_inception(weights)
        net = net.to(device)
        # (x - 128) / 128, as the 2015 graph scales its input.
        return Detector(name, "inception_v3_fid", content_hash(weights), inception.FEATURE_DIM, inception.RESOLUTION,
                        device, lambda x: net((x - 128) / 128), lambda f: f @ classifier.T)
    if timm_detectors.is_known(name):
        assert weights is not None
        loaded = timm_detectors.load(name, weights, device)
        return Detector(name, timm_detectors.spec(name).timm_name, content_hash(weights), loaded.feature_dim,
                        loaded.resolution, device, loaded.pooled, loaded.head)
    backbone = load_backbone(f"tf_{name}")
    last = backbone.net.get_classifier()
    weight, bias = last.weight.detach().cpu(), last.bias.detach().cpu()
    return Detector(name, backbone.name, backbone.weights_hash, backbone.feature_dim, LITE2_RESOLUTION,
                    device, lambda x: backbone.pooled(x / 127.5 - 1), lambda f: F.linear(f, weight, bias))
