"""The feature extractor f: four forms of DIC-GAN's, and the plain frozen features of IC-GAN and DISP.

All map images [N, C, H, W] in [-1, 1] to instance latents f [N, C', H', W'] (a vector is a 1×1 map). Those of DIC-GAN
have a root mean square of 1 per sample, which fixes the signal-to-noise ratio (1 − σ²)/σ² of h. Trained by the
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
from pg_modules.backbones import Backbone, load_backbone
from pg_modules.resize import averaged, bilinear
from pg_modules.whitening import Whitening, moments, rms_normalize
from torch_utils.device import at_least_float32
from torch_utils.eigen import eigh


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


class Backboned(Encoder):
    """An encoder that looks at images through a frozen network of `pg_modules.backbones`."""

    trainable = False

    def __init__(self, latent_shape: Sequence[int], img_resolution: int, backbone: str, weights: str | None,
                 sha256: str | None, input_size: int | None) -> None:
        """img_resolution: short side of the images. weights: file for a network outside the manifest; sha256: of it,
        to be sure that a trained generator gets the features that it was trained with; None = any.

        input_size: short side that images are resized to for the network; None = their own, at least 128.
        """
        super().__init__(latent_shape)
        self.input_size = input_size or max(img_resolution, 128)
        # In a list, so that the network's weights stay out of the checkpoint: the manifest pins them.
        self._backbone = [load_backbone(backbone, weights)]
        if sha256 not in (None, self.backbone.weights_hash):
            raise UserError(f"The weights of {backbone} are not those that this network was trained with "
                            f"({self.backbone.weights_hash[:12]}, not {str(sha256)[:12]}); put the former file back.")
        most = self.backbone.map_sizes(self.input_size)[-1]
        if min(self.latent_shape[1:]) > most:
            shape = "x".join(map(str, latent_shape))
            raise UserError(f"--latent {shape}: at {self.input_size} px the frozen network's map has a side of {most}; "
                            f"use --latent Cx{most}x{most} or smaller, or --encoder joint.")

    @property
    def backbone(self) -> Backbone:
        """The frozen network."""
        return self._backbone[0]

    def resized(self, img: torch.Tensor) -> torch.Tensor:
        """img at the network's input size, the aspect ratio kept."""
        short = min(img.shape[2:])
        if short == self.input_size:
            return img
        height, width = (side * self.input_size // short for side in img.shape[2:])
        return bilinear(img, (height, width), antialias=True)

    def grid(self, img: torch.Tensor) -> torch.Tensor:
        """img → last features [N, D, H, W] of the frozen network, averaged over the cells of f's grid.

        In float32 at least.
        """
        net = self.backbone.to(img.device)
        _, height, width = self.latent_shape
        if (height, width) == (1, 1):
            return at_least_float32(net.pooled(self.resized(img)))[:, :, None, None]
        return averaged(at_least_float32(net.last_map(self.resized(img))), (height, width))


class FeatureEncoder(Backboned):
    """Pooled features of a frozen network, of length 1: the instances of IC-GAN and the prior C(x) of DISP."""

    normalization = "unit"

    def __init__(self, img_resolution: int, backbone: str = "tf_efficientnet_lite0", weights: str | None = None,
                 sha256: str | None = None, input_size: int | None = None) -> None:
        """As `Backboned`; the width of f is the network's."""
        super().__init__((load_backbone(backbone, weights).feature_dim, 1, 1), img_resolution, backbone, weights,
                         sha256, input_size)

    def normalize(self, f: torch.Tensor) -> torch.Tensor:
        return F.normalize(f, dim=1)

    def fit(self, images: Iterable[torch.Tensor]) -> None:
        """Nothing depends on the data."""

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.normalize(self.grid(img))


class FrozenEncoder(Backboned):
    """f = whitened principal components of a frozen network's features, pooled or on a grid; nothing is trained."""

    mean: torch.Tensor
    projection: torch.Tensor

    def __init__(self, latent_shape: Sequence[int], img_resolution: int, backbone: str = "tf_efficientnet_lite0",
                 weights: str | None = None, sha256: str | None = None, input_size: int | None = None) -> None:
        """As `Backboned`."""
        super().__init__(latent_shape, img_resolution, backbone, weights, sha256, input_size)
        if self.latent_shape[0] > self.backbone.feature_dim:
            raise UserError(f"--latent {self.latent_shape[0]}: {backbone} has {self.backbone.feature_dim} features "
                            "only.")
        self.register_buffer("mean", torch.zeros(self.backbone.feature_dim))
        self.register_buffer("projection", torch.zeros(self.latent_shape[0], self.backbone.feature_dim))

    @torch.no_grad()
    def fit(self, images: Iterable[torch.Tensor]) -> None:
        count, mean, covariance = moments(self.grid(img).movedim(1, -1).flatten(0, -2) for img in images)
        dims = self.latent_shape[0]
        if count <= dims:
            raise UserError(f"--latent {dims}: the data set has {count} features to whiten (flips included), too few "
                            f"for {dims} dimensions; use --latent {max(2, count // 4)} or more images.")
        # Eigenvectors of the covariance are the principal axes; signs are fixed for repeatability.
        variances, axes = eigh(covariance, largest=dims)
        variances, axes = variances.flip(0), axes.T.flip(0)
        axes = axes * torch.where(axes.sum(1, keepdim=True) < 0, -1.0, 1.0)
        self.mean.copy_(mean)
        self.projection.copy_(axes / variances[:, None].clamp_min(1e-16).sqrt())

    def components(self, img: torch.Tensor) -> torch.Tensor:
        """The whitened components [N, C, H, W] of an image."""
        return self._projected(self.grid(img) - self.mean[:, None, None])

    def _projected(self, centred: torch.Tensor) -> torch.Tensor:
        """Centred features [N, D, H, W] on the principal axes, in their own type even under autocast."""
        with torch.autocast(centred.device.type, enabled=False):
            return F.conv2d(centred, self.projection[:, :, None, None])

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.normalize(self.components(img))


class HeadEncoder(FrozenEncoder):
    """f = the frozen encoder's components plus a trained correction, whitened by running statistics."""

    trainable = True

    def __init__(self, latent_shape: Sequence[int], img_resolution: int, backbone: str = "tf_efficientnet_lite0",
                 weights: str | None = None, sha256: str | None = None, input_size: int | None = None,
                 hidden: int = 256) -> None:
        """As `Backboned`; hidden: width of the correction, which starts at zero."""
        super().__init__(latent_shape, img_resolution, backbone, weights, sha256, input_size)
        features = self.backbone.feature_dim
        last = nn.Linear(hidden, self.latent_shape[0])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.correction = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, hidden), nn.SiLU(), last)
        self.whitening = Whitening(self.latent_shape[0])

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        # With a graph where the image has one: the information term reaches G through here.
        centred = self.grid(img) - self.mean[:, None, None]
        f = self._projected(centred) + self.correction(centred.movedim(1, -1)).movedim(-1, 1)
        return self.normalize(self.whitening(f))


class JointEncoder(Encoder):
    """The draft's form: a convolutional encoder from scratch, trained with the generator."""

    def __init__(self, latent_shape: Sequence[int], img_resolution: int, img_channels: int = 3,
                 aspect: Sequence[int] = (1, 1), channels: int = 32) -> None:
        """img_resolution, aspect: short side of the images, and both sides in multiples of it.

        channels: width at full resolution; it doubles with every halving of the side, up to 256.
        """
        super().__init__(latent_shape)
        height, width = self.latent_shape[1:]
        short = min(height, width)
        fits = (height, width) in ((1, 1), (short * aspect[0], short * aspect[1]))
        if not fits or short & (short - 1) or short > img_resolution:
            raise UserError(
                f"--latent {'x'.join(map(str, latent_shape))}: the sides must be powers of two up to the image's "
                f"{img_resolution}, in its proportions ({aspect[0]}:{aspect[1]}) or 1x1."
            )
        layers: list[nn.Module] = [nn.Conv2d(img_channels, channels, 3, padding=1), nn.SiLU()]
        # Strided down to 4 px, then averaged: a 1×1 latent sees the whole image.
        side = img_resolution
        while side > max(short, 4):
            wider = min(2 * channels, 256)
            layers += [nn.Conv2d(channels, wider, 4, stride=2, padding=1, bias=False),
                       nn.GroupNorm(8, wider), nn.SiLU()]
            channels, side = wider, side // 2
        layers.append(nn.AdaptiveAvgPool2d((height, width)))
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
