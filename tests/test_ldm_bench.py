"""The plain network that speed is compared with is the published one; ours computes the same, and so does its form for
sampling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.plain_unet import PlainUNet
from ldm import denoiser
from ldm.presets import PRESETS, resolve
from ldm.sampling_unet import FEW_LATENTS, Convolution, SamplingUNet, for_sampling
from ldm.unet import UNet
from pg_modules import kernels


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


def estimator_of(shape: tuple[int, int, int], classes: int = 0) -> denoiser.NoiseEstimator:
    """A `unet` with weights of no special values, in float64."""
    config = resolve("unet", shape, {})
    config["net"] |= {"channels": 32, "classes": classes}
    net = denoiser.build(config, shape).eval().requires_grad_(False)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.double()


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing() or "there are kernels")
@pytest.mark.parametrize("shape", [(3, 8, 8), (4, 4, 4), (2, 5, 6), (2, 16, 8)])
@pytest.mark.parametrize("classes", [0, 3])
def test_sampling_form_computes_the_same(shape: tuple[int, int, int], classes: int) -> None:
    """With kernels, in float64; and it is the network itself for few latents and where a gradient is wanted."""
    plain = estimator_of(shape, classes)
    quick = for_sampling(plain)
    net = quick.net
    assert isinstance(net, SamplingUNet)
    assert sum(isinstance(module, Convolution) for module in net.fast.modules()) > 10
    count = FEW_LATENTS + 1
    x, t = torch.randn(count, *shape, dtype=torch.float64), torch.arange(count) * 150
    y = torch.arange(count) % (classes + 1) if classes else None
    expected = plain(x, t, y)
    assert expected.std() > 0.1
    with torch.no_grad():
        found = quick(x, t, y)
        assert not torch.equal(found, expected)  # the other way was taken
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        few = FEW_LATENTS - 1
        assert torch.equal(quick(x[:few], t[:few], None if y is None else y[:few]),
                           plain(x[:few], t[:few], None if y is None else y[:few]))
    x.requires_grad_(True)
    gradient, = torch.autograd.grad(quick(x, t, y).square().sum(), x)
    assert gradient.abs().max() > 0


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing() or "there are kernels")
def test_only_a_unet_on_a_cpu_with_kernels_has_a_sampling_form(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = denoiser.build(resolve("mlp", (4, 1, 1), {}), (4, 1, 1))
    assert for_sampling(mlp) is mlp
    for channels in (64, 100):  # 100 are a group of their own, too wide for the kernel
        config = resolve("unet", (2, 4, 4), {})
        config["net"] |= {"channels": channels}
        net = denoiser.build(config, (2, 4, 4))
        assert (for_sampling(net) is net) == (channels == 100)
    unet = estimator_of((2, 4, 4))
    monkeypatch.setattr(kernels, "missing", lambda: "no C compiler")
    assert for_sampling(unet) is unet


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing() or "there are kernels")
def test_group_norm_of_large_numbers() -> None:
    """Far from zero, of constant groups, with channels in groups of 12, and whatever the number of threads."""
    norm = nn.GroupNorm(16, 192, eps=1e-6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(3, 192, 5, 7, dtype=torch.float64) * 0.1 + 1e4).contiguous(memory_format=torch.channels_last)
    x[0, :12] = 7.0
    grouped = x.reshape(3, 16, -1)  # torch's own loses half of the digits here
    normal = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, correction=0, keepdim=True) + norm.eps).sqrt()
    expected = normal.reshape(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]
    for swish in (0, 1):
        made = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = torch.empty_like(x)
            kernels.call("group_norm", x.permute(0, 2, 3, 1), norm.weight, norm.bias, norm.eps, swish,
                         y.permute(0, 2, 3, 1), 3, 35, 192, 12)
            made.append(y)
        torch.set_num_threads(1)
        torch.testing.assert_close(made[0], nn.functional.silu(expected) if swish else expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(made[1], made[0])
