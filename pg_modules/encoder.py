"""The feature extractor f of DIC-GAN, in four forms.

All map images [N, 3, R, R] in [-1, 1] to instance latents f [N, C, H, W] (a vector is a 1×1 map) with a
root mean square of 1 per sample, which fixes the signal-to-noise ratio (1 − σ²)/σ² of h. Trained by the
generator's gradient alone, f tends to collapse; every form but the constant control is therefore kept
whitened: by fixed statistics of the data set (frozen), or by running ones (head, joint).
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from dnnlib import UserError
from pg_modules.backbones import load_backbone


def rms_normalize(f: torch.Tensor) -> torch.Tensor:
    """Divides each sample of f [N, C, H, W] by its root mean square over C, H, W."""
    return f * (f.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()


def inverse_sqrt(covariance: torch.Tensor, floor: float = 1e-3) -> torch.Tensor:
    """Symmetric inverse square root of [C, C]; eigenvalues are raised to `floor` × their mean."""
    values, vectors = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(floor * values.mean().clamp_min(1e-12))
    return ((vectors * values.rsqrt()) @ vectors.T).to(covariance.dtype)


class Encoder(nn.Module, abc.ABC):
    """What all forms share: the shape of f, its normalisation, and fitting to a data set."""

    normalization = "rms"
    trainable = True

    def __init__(self, latent_shape: Sequence[int]) -> None:
        """latent_shape: (C, H, W) of f."""
        super().__init__()
        self.latent_shape = tuple(latent_shape)

    def normalize(self, f: torch.Tensor) -> torch.Tensor:
        """The normalisation that f has; to be applied to latents from a prior as well."""
        return rms_normalize(f)

    @abc.abstractmethod
    def fit(self, images: Iterable[torch.Tensor]) -> None:
        """Adapts stored statistics to batches of images [N, 3, R, R] in [-1, 1], once before training."""


class Whitening(nn.Module):
    """Removes mean and covariance of the channels of [N, C, H, W] by running statistics.

    The statistics follow the batches of forward passes that build a graph (the generator's steps); no
    gradient flows through them.
    """

    mean: torch.Tensor
    covariance: torch.Tensor

    def __init__(self, channels: int, momentum: float = 0.02) -> None:
        """momentum: weight of the newest batch in the running statistics."""
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("covariance", torch.eye(channels))

    @torch.no_grad()
    def observe(self, x: torch.Tensor, momentum: float) -> None:
        """Moves the statistics towards those of x by `momentum`; 1 replaces them."""
        rows = x.float().movedim(1, -1).flatten(0, -2)
        centred = rows - rows.mean(0)
        self.mean.lerp_(rows.mean(0), momentum)
        self.covariance.lerp_(centred.T @ centred / max(len(rows) - 1, 1), momentum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):  # statistics need all of float32
            if self.training and torch.is_grad_enabled():
                self.observe(x, self.momentum)
            weight = inverse_sqrt(self.covariance)
            return F.conv2d(x.float() - self.mean[:, None, None], weight[:, :, None, None])


class FrozenEncoder(Encoder):
    """f = whitened principal components of a frozen network's pooled features; nothing is trained."""

    trainable = False
    mean: torch.Tensor
    projection: torch.Tensor

    def __init__(self, latent_shape: Sequence[int], img_resolution: int,
                 backbone: str = "tf_efficientnet_lite0", input_size: int | None = None) -> None:
        """input_size: side that images are resized to for the network; None = their own, at least 128."""
        super().__init__(latent_shape)
        if self.latent_shape[1:] != (1, 1):
            raise UserError(
                f"--latent {'x'.join(map(str, latent_shape))}: the frozen encoder gives vectors; "
                "use --latent C, or --encoder joint or head for maps."
            )
        self.input_size = input_size or max(img_resolution, 128)
        # In a list, so that the network's weights stay out of the checkpoint: the manifest pins them.
        self._backbone = [load_backbone(backbone)]
        self.register_buffer("mean", torch.zeros(self._backbone[0].feature_dim))
        self.register_buffer("projection", torch.zeros(self.latent_shape[0], self._backbone[0].feature_dim))

    def pooled(self, img: torch.Tensor) -> torch.Tensor:
        """img [N, 3, R, R] → pooled features [N, D] of the frozen network, float32."""
        if img.shape[-1] != self.input_size:
            img = F.interpolate(img, size=(self.input_size,) * 2, mode="bilinear", antialias=True)
        return self._backbone[0].to(img.device).pooled(img).float()

    @torch.no_grad()
    def fit(self, images: Iterable[torch.Tensor]) -> None:
        features = torch.cat([self.pooled(img) for img in images]).double()
        dims = self.latent_shape[0]
        if len(features) <= dims:
            raise UserError(
                f"--latent {dims}: the data set has {len(features)} images (flips included), "
                f"too few to whiten {dims} dimensions; use --latent {max(2, len(features) // 4)} or more images."
            )
        mean = features.mean(0)
        # Singular vectors of the centred features are the principal axes; signs are fixed for repeatability.
        _, scales, axes = torch.linalg.svd(features - mean, full_matrices=False)
        axes = axes[:dims] * torch.where(axes[:dims].sum(1, keepdim=True) < 0, -1.0, 1.0)
        deviations = scales[:dims, None] / (len(features) - 1) ** 0.5
        self.mean.copy_(mean)
        self.projection.copy_(axes / deviations.clamp_min(1e-8))

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        f = (self.pooled(img) - self.mean) @ self.projection.T
        return self.normalize(f[:, :, None, None])


class HeadEncoder(FrozenEncoder):
    """f = the frozen encoder's components plus a trained correction, whitened by running statistics."""

    trainable = True

    def __init__(self, latent_shape: Sequence[int], img_resolution: int,
                 backbone: str = "tf_efficientnet_lite0", input_size: int | None = None, hidden: int = 256) -> None:
        """hidden: width of the correction, which starts at zero."""
        super().__init__(latent_shape, img_resolution, backbone, input_size)
        features = self._backbone[0].feature_dim
        last = nn.Linear(hidden, self.latent_shape[0])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.correction = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, hidden), nn.SiLU(), last)
        self.whitening = Whitening(self.latent_shape[0])

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            pooled = self.pooled(img)
            components = (pooled - self.mean) @ self.projection.T
        f = components + self.correction(pooled - self.mean)
        return self.normalize(self.whitening(f[:, :, None, None]))


class JointEncoder(Encoder):
    """The draft's form: a convolutional encoder from scratch, trained with the generator."""

    def __init__(self, latent_shape: Sequence[int], img_resolution: int, channels: int = 32) -> None:
        """channels: width at full resolution; it doubles with every halving of the side, up to 256."""
        super().__init__(latent_shape)
        _, height, width = self.latent_shape
        if height != width or height & (height - 1) or height > img_resolution:
            raise UserError(
                f"--latent {'x'.join(map(str, latent_shape))}: the side must be a power of two "
                f"up to the image's {img_resolution}."
            )
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.SiLU()]
        # Strided down to 4 px, then averaged: a 1×1 latent sees the whole image.
        side = img_resolution
        while side > max(height, 4):
            wider = min(2 * channels, 256)
            layers += [nn.Conv2d(channels, wider, 4, stride=2, padding=1, bias=False),
                       nn.GroupNorm(8, wider), nn.SiLU()]
            channels, side = wider, side // 2
        if side > height:
            layers.append(nn.AvgPool2d(side // height))
        layers.append(nn.Conv2d(channels, self.latent_shape[0], 1))
        self.layers = nn.Sequential(*layers)
        self.whitening = Whitening(self.latent_shape[0])

    @torch.no_grad()
    def fit(self, images: Iterable[torch.Tensor]) -> None:
        self.whitening.observe(torch.cat([self.layers(img) for img in images]), momentum=1.0)

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.normalize(self.whitening(self.layers(img)))


class ConstantEncoder(Encoder):
    """The control: the same f for every image, so that h says nothing and is an extra noise input."""

    trainable = False

    constant: torch.Tensor

    def __init__(self, latent_shape: Sequence[int]) -> None:
        super().__init__(latent_shape)
        self.register_buffer("constant", torch.ones(self.latent_shape))

    def fit(self, images: Iterable[torch.Tensor]) -> None:
        """Nothing depends on the data."""

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.constant.expand(len(img), *self.latent_shape)
