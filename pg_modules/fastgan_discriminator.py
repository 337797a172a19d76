"""The original FastGAN's own discriminator, which learns features by reconstructing reals (Liu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from dnnlib import UserError
from pg_modules.conditions import LABEL, ConditionProjection, with_time
from pg_modules.diffaug import diffaug as augmented
from pg_modules.diffaug import parse_policy
from pg_modules.fastgan import RESOLUTIONS, SkipExcitation
from pg_modules.layers import SNConv2d, SNUpConv2d, freeze_blocks, resize_map
from pg_modules.resize import averaged

LAST = 8  # short side of the maps that logits and reconstructions are made from
MAX_START = 256  # short side at which the two-path blocks start at most; larger images are first halved plainly
MAX_SMALL = 128  # short side of the small image at most
GATE_STEP = 8  # a map is gated by the one that is so many times larger
CMAP_DIM = 64
# Channels of a decoder's maps at 16, 32, 64 and 128 px, in multiples of ndf.
DECODER_CHANNELS = (2.0, 1.0, 1.0, 0.5)


class Reconstruction(NamedTuple):
    """What a decoder made of a real image, and what it should have made; both ``[N, C, H, W]`` of one size."""

    img: torch.Tensor
    target: torch.Tensor


class Maps(NamedTuple):
    """Short sides 16 (large branch), 8 (large branch) and 8 (small branch)."""

    sixteen: torch.Tensor
    last: torch.Tensor
    small: torch.Tensor


def quarter(x: torch.Tensor, part: int) -> torch.Tensor:
    """Quarter 0 to 3 of ``[N, C, H, W]``: top left, top right, bottom left, bottom right."""
    row, column = divmod(part, 2)
    height, width = x.shape[2] // 2, x.shape[3] // 2
    return x[:, :, row * height:(row + 1) * height, column * width:(column + 1) * width]


def shrink(img: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images averaged down to `size`. (The official code picks single pixels, whose aliasing D could tell.)"""
    return img if tuple(img.shape[2:]) == size else averaged(img, size)


def _layer(in_channels: int, out_channels: int, kernel: int, stride: int = 1, norm: bool = True) -> list[nn.Module]:
    conv = SNConv2d(in_channels, out_channels, kernel, stride, padding=(kernel - stride + 1) // 2, bias=False)
    return [conv, *([nn.BatchNorm2d(out_channels)] if norm else []), nn.LeakyReLU(0.2, inplace=True)]


class DownStage(nn.Module):
    """Halves a map by two averaged paths, strided convolution and pooling; then gates it by a map of before.

    `gate_channels`: of the gating map; 0 = no gate.
    """

    def __init__(self, in_channels: int, out_channels: int, gate_channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(*_layer(in_channels, out_channels, 4, 2), *_layer(out_channels, out_channels, 3))
        self.direct = nn.Sequential(nn.AvgPool2d(2), *_layer(in_channels, out_channels, 1))
        self.gate = SkipExcitation(gate_channels, out_channels) if gate_channels else None

    def forward(self, x: torch.Tensor, gating: torch.Tensor | None) -> torch.Tensor:
        """``x [N, in, H, W]`` to ``[N, out, H/2, W/2]``; `gating`: a larger map, None without a gate."""
        x = (self.main(x) + self.direct(x)) / 2
        if self.gate is None:
            return x
        assert gating is not None
        return self.gate(gating, x)


class LogitMap(nn.Module):
    """A map with short side 8 to logits: with `hidden`, a 1×1 layer; then a valid 4×4 convolution.

    h is concatenated in front of the 1×1 layer, the last place with a nonlinearity behind it: behind that layer h could
    only be added to the logits. c is projected on, with a logit of its own unless c is nothing but a label.
    """

    def __init__(self, in_channels: int, hidden: int, c_parts: Mapping[str, int], h_channels: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(*(_layer(in_channels + h_channels, hidden, 1) if hidden else []))
        self.own_logit = set(c_parts) != {LABEL}
        self.projection = ConditionProjection(c_parts, CMAP_DIM) if c_parts else None
        outputs = (CMAP_DIM if c_parts else 0) + self.own_logit
        self.cls = SNConv2d(hidden or in_channels, outputs, 4, bias=False)

    def forward(self, x: torch.Tensor, c: torch.Tensor | None, h: torch.Tensor | None) -> torch.Tensor:
        """``[N, in, H, W]`` to ``[N, (H − 3)(W − 3)]``."""
        if h is not None:
            size = (x.shape[2], x.shape[3])
            x = torch.cat([x, resize_map(h, size).expand(-1, -1, *size).to(x.dtype)], dim=1)
        x = self.cls(self.hidden(x))
        if self.projection is None:
            return x.flatten(1)
        logits = (x[:, :CMAP_DIM] * self.projection(c)[:, :, None, None]).sum(dim=1) / math.sqrt(CMAP_DIM)
        return (logits + x[:, -1] if self.own_logit else logits).flatten(1)


class Decoder(nn.Sequential):
    """A map with short side 8 to an image of short side `side` in [-1, 1]."""

    def __init__(self, in_channels: int, img_channels: int, side: int, ndf: int) -> None:
        layers: list[nn.Module] = []
        for factor in DECODER_CHANNELS[:int(math.log2(side // LAST))]:
            channels = max(int(factor * ndf), 1)
            layers += [SNUpConv2d(in_channels, 2 * channels), nn.BatchNorm2d(2 * channels), nn.GLU(dim=1)]
            in_channels = channels
        super().__init__(*layers, SNConv2d(in_channels, img_channels, 3, padding=1, bias=False), nn.Tanh())


class Discriminator(nn.Module):
    """Two branches, for the image and for a small one, and three decoders that only reals reach.

    img_resolution  short side of the images, a power of two from 32 to 1024; the small image has half of it, at
                    most 128
    img_channels    channels of the images
    aspect          height and width in multiples of the short side
    c_parts         widths of the parts of the condition vector by name, None or {} for none
    h_channels      channels of the noised representation that both branches see, 0 for none
    ndf             width multiplier; 64 is official
    diffaug         augmentations of `pg_modules.diffaug`, "" for none

    Convolutions are spectrally normalised and start from N(0, 0.02), norms from N(1, 0.02), as in the official code.
    """

    def __init__(self, img_resolution: int, img_channels: int = 3, aspect: Sequence[int] = (1, 1),
                 c_parts: Mapping[str, int] | None = None, h_channels: int = 0, ndf: int = 64,
                 diffaug: str = "color,translation,cutout") -> None:
        super().__init__()
        if img_resolution not in RESOLUTIONS:
            raise UserError(f"FastGAN's discriminator takes images of side {', '.join(map(str, RESOLUTIONS))}, not "
                            f"{img_resolution}; convert the data set with dataset_tool.py --resolution.")
        parse_policy(diffaug)
        self.c_parts, self.h_channels, self.diffaug = dict(c_parts or {}), h_channels, diffaug
        self.small_side = min(MAX_SMALL, img_resolution // 2)
        self.small_size = (self.small_side * aspect[0], self.small_side * aspect[1])
        channels = {2**k: max(ndf * 64 >> k, 1) for k in range(2, 11)}
        start = min(img_resolution, MAX_START)
        self.stem = self._make_stem(img_resolution, start, img_channels, channels)
        self.stages = nn.ModuleDict()
        side = start // 2
        while side >= LAST:
            gate = channels[side * GATE_STEP] if side * GATE_STEP <= start else 0
            self.stages[str(side)] = DownStage(channels[2 * side], channels[side], gate)
            side //= 2
        # At every side half the channels of the large branch.
        thin = [img_channels, *(max(ndf * 32 >> k, 1) for k in range(int(math.log2(self.small_side)) - 1, 2, -1))]
        self.small = nn.Sequential(*(nn.Sequential(*_layer(thin[k], thin[k + 1], 4, 2, norm=k > 0))
                                     for k in range(len(thin) - 1)))
        self.logits_big = LogitMap(channels[LAST], channels[4], self.c_parts, h_channels)
        # The official small branch has no 1×1 layer; h needs one.
        self.logits_small = LogitMap(thin[-1], thin[-1] if h_channels else 0, self.c_parts, h_channels)
        self.decoder_big = Decoder(channels[LAST], img_channels, self.small_side, ndf)
        self.decoder_small = Decoder(thin[-1], img_channels, self.small_side, ndf)
        self.decoder_part = Decoder(channels[16], img_channels, self.small_side, ndf)
        self._initialise()

    @staticmethod
    def _make_stem(resolution: int, start: int, img_channels: int, channels: Mapping[int, int]) -> nn.Sequential:
        """Image to a map of short side `start`: halvings where the image is larger, else one convolution."""
        if resolution == start:
            return nn.Sequential(*_layer(img_channels, channels[start], 3, norm=False))
        layers = _layer(img_channels, channels[resolution // 2], 4, 2, norm=False)
        if resolution // 2 > start:
            layers += _layer(channels[resolution // 2], channels[start], 4, 2)
        return nn.Sequential(*layers)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, SNConv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, img: torch.Tensor, c: torch.Tensor | None = None, h: torch.Tensor | None = None,
                generator: torch.Generator | None = None, d_noise: Any = None,
                small: torch.Tensor | None = None) -> torch.Tensor:
        """Logits ``[N, L]``, both branches behind each other, of images ``[N, C, H, W]`` in [-1, 1].

        ``c [N, c_dim]`` without its time part; ``h [N, h_channels, H', W']``; `generator`: CPU source of
        augmentations and noise; `d_noise`: a `training.d_noise.base.DNoise` that changes images, or None; `small`:
        the generator's second image, augmented and noised for itself as the first; None = the augmented image, shrunk.
        Raises ValueError when a condition or the generator is missing or not expected.
        """
        img = augmented(img, self.diffaug, generator)
        small = shrink(img, self.small_size) if small is None else augmented(small, self.diffaug, generator)
        return self._look(img, small, c, h, generator, d_noise)[0]

    def reconstruct(self, img: torch.Tensor, c: torch.Tensor | None = None, h: torch.Tensor | None = None,
                    generator: torch.Generator | None = None,
                    d_noise: Any = None) -> tuple[torch.Tensor, list[Reconstruction]]:
        """Logits of reals as `forward`, and three reconstructions of the augmented, not yet noised images.

        From the last map of each branch the whole image, from one quarter of the 16×16 map that quarter; the
        quarter is drawn from `generator`, one for the batch.
        """
        if generator is None:
            raise ValueError("the choice of a quarter needs a torch.Generator")
        img = augmented(img, self.diffaug, generator)
        whole = shrink(img, self.small_size)
        logits, maps = self._look(img, whole, c, h, generator, d_noise)
        part = int(torch.randint(4, (), generator=generator, device="cpu"))
        return logits, [
            Reconstruction(self.decoder_big(maps.last), whole),
            Reconstruction(self.decoder_small(maps.small), whole),
            Reconstruction(self.decoder_part(quarter(maps.sixteen, part)), shrink(quarter(img, part), self.small_size))]

    def _look(self, img: torch.Tensor, small: torch.Tensor, c: torch.Tensor | None, h: torch.Tensor | None,
              generator: torch.Generator | None, d_noise: Any) -> tuple[torch.Tensor, Maps]:
        """Both logit maps, and the maps that they come from. Either image has noise, and a time, of its own."""
        if (h.shape[1] if h is not None else 0) != self.h_channels:
            raise ValueError(f"the discriminator takes h with {self.h_channels} channels, "
                             f"not {0 if h is None else h.shape[1]}")
        time, time_small = None, None
        if d_noise is not None:
            img, time = d_noise.image(img, generator)
            small, time_small = d_noise.image(small, generator)
        sixteen, last = self._large(img)
        maps = Maps(sixteen, last, self.small(small))
        big = self.logits_big(last, with_time(c, time), h)
        return torch.cat([big, self.logits_small(maps.small, with_time(c, time_small), h)], dim=1), maps

    def _large(self, img: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(img)
        maps = [x]
        for stage in self.stages.values():
            # The map that is GATE_STEP times larger than this stage's result.
            maps.append(stage(maps[-1], maps[-3] if len(maps) >= 3 else None))
        return maps[-2], maps[-1]

    def features(self, img: torch.Tensor) -> torch.Tensor:
        """``[N, D]``: the last map of the large branch, averaged over space, of images without augmentation."""
        return self._large(img)[1].mean(dim=(2, 3))

    def freeze(self, count: int) -> None:
        """Stops training the first `count` blocks of both branches (FreezeD); UserError if there aren't as many."""
        blocks = [self.stem, *self.stages.values()]
        freeze_blocks(blocks, count)
        freeze_blocks(list(self.small), count, len(blocks))
