"""The plain network that speed is compared with is the published one, and ours computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.plain_unet import PlainUNet
from ldm.presets import PRESETS
from ldm.unet import UNet


def test_plain_network_has_the_published_size() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in PlainUNet((3, 32, 32)).parameters()) == 35_746_307


def copy_weights(plain: PlainUNet, net: UNet) -> None:
    """By order of use; q, k and v are one layer in ours."""
    def residual(a: nn.Module, b: nn.Module) -> None:
        for name in ("norm1", "conv1", "time", "norm2", "conv2"):
            getattr(b, name).load_state_dict(getattr(a, name).state_dict())
        if getattr(a, "skip", None) is not None:
            b.skip.load_state_dict(a.skip.state_dict())  # type: ignore[operator, union-attr]

    def attention(a: nn.Module, b: nn.Module) -> None:
        if isinstance(a, nn.Identity):
            assert isinstance(b, nn.Identity)
            return
        b.norm.load_state_dict(a.norm.state_dict())  # type: ignore[operator, union-attr]
        b.proj.load_state_dict(a.out.state_dict())  # type: ignore[operator, union-attr]
        for kind in ("weight", "bias"):
            parts = [getattr(getattr(a, name), kind) for name in ("q", "k", "v")]
            getattr(b.qkv, kind).copy_(torch.cat(parts))

    stages = {"down": [m for m in net.down if hasattr(m, "block")], "up": [m for m in net.up if hasattr(m, "block")]}
    for side in ("down", "up"):
        pairs = zip(getattr(plain, side), getattr(plain, f"{side}_attention"), stages[side], strict=True)
        for block, attend, stage in pairs:
            residual(block, stage.block)
            attention(attend, stage.attention)
    for side, scales in (("down", plain.shrink), ("up", plain.enlarge)):
        ours = [m for m in getattr(net, side) if not hasattr(m, "block")]
        for a, b in zip(scales, ours, strict=True):
            b.conv.load_state_dict(a.state_dict())
    residual(plain.middle[0], net.middle[0].block)
    attention(plain.middle[1], net.middle[0].attention)
    residual(plain.middle[2], net.middle[1].block)
    net.time.layers[0].load_state_dict(plain.time1.state_dict())
    net.time.layers[2].load_state_dict(plain.time2.state_dict())
    for name in ("first", "norm", "last"):
        getattr(net, name).load_state_dict(getattr(plain, name).state_dict())


@torch.no_grad()
def test_our_network_is_the_published_one() -> None:
    """At a size with all four levels and with attention."""
    shape = (3, 32, 32)
    options = {key: value for key, value in PRESETS["unet-cifar"]["net"].items() if key != "class_name"}
    plain, net = PlainUNet(shape).eval(), UNet(shape, **options).eval()
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in net.parameters())
    copy_weights(plain, net)
    x, t = torch.randn(1, *shape), torch.tensor([400])
    out = plain(x, t)
    assert out.std() > 0.1
    torch.testing.assert_close(net(x, t), out, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [1, 8])
def test_plain_network_fits_small_maps(side: int) -> None:
    with torch.device("meta"):
        net = PlainUNet((16, side, side))
        assert net(torch.zeros(2, 16, side, side), torch.zeros(2, dtype=torch.int64)).shape == (2, 16, side, side)
