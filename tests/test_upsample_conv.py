"""Nearest ×2 and 3×3 convolution in few products, and division by the spectral norm, against their plain forms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pg_modules import (
    kernels,
    upsample_conv,
    upsample_kernels,
    upsample_products,
    winograd,
    winograd_kernels,
    winograd_sums,
)
from pg_modules.batch_norm import BatchNorm2d, channels_last
from pg_modules.layers import LARGER, SNConv2d, SNConvTranspose2d, SNLinear, SNUpConv2d, gated
from pg_modules.upsample_conv import MANY_PIXELS, MIN_CHANNELS, upsample_conv2d
from pg_modules.upsample_products import Products
from pg_modules.winograd import conv3x3

TOLERANCE = 1e-9  # relative, in float64


def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def drawn(shape: tuple[int, ...], out: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x and a weight in float64."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=rng, dtype=torch.double).requires_grad_()
    return x, torch.randn(out, shape[1], 3, 3, generator=rng, dtype=torch.double).requires_grad_()


def with_gradients(form: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradients of both arguments."""
    y = form(x, weight)
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.double).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), target)]


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def with_kernels(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> bool:
    """With kernels, where a compiler is found, and without."""
    if not request.param:
        monkeypatch.setattr(kernels, "usable", lambda x: False)
    elif kernels.missing():
        pytest.skip(kernels.missing())
    return request.param


@pytest.fixture(params=[1, 2])
def products(with_kernels: bool, monkeypatch: pytest.MonkeyPatch,
             request: pytest.FixtureRequest) -> pytest.MonkeyPatch:
    """The fast form for any number of channels, of either step."""
    monkeypatch.setattr(upsample_conv, "MIN_CHANNELS", {True: {1: 1, 2: 1}, False: {1: 1, 2: 1}})
    pixels = 0 if request.param == 2 else 1 << 30
    monkeypatch.setattr(upsample_conv, "MANY_PIXELS", {True: pixels, False: pixels})
    return monkeypatch


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (1, 3, 5, 7), (3, 4, 8, 4), (2, 3, 1, 1), (1, 2, 1, 6), (1, 2, 2, 2)])
@pytest.mark.parametrize("sizes", [{}, {"PIXELS": 30, "BLOCK": 4, "AT_ONCE": 20},
                                   {"PIXELS": 1, "BLOCK": 1, "AT_ONCE": 4}])
def test_products_equal_the_plain_order(products: pytest.MonkeyPatch, shape: tuple[int, ...],
                                        sizes: dict[str, int]) -> None:
    for name, value in sizes.items():
        products.setattr(upsample_kernels if name == "AT_ONCE" else upsample_products, name, value)
    x, weight = drawn(shape, 6)
    for ours, theirs in zip(with_gradients(upsample_conv2d, x, weight), with_gradients(plain, x, weight), strict=True):
        assert ours.shape == theirs.shape
        assert relative(ours, theirs) < TOLERANCE


@pytest.mark.usefixtures("products")
def test_products_of_maps_in_other_layouts() -> None:
    x, weight = drawn((2, 4, 6, 5), 3)
    transposed = x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = with_gradients(plain, x, weight)
    for other in (transposed, last):
        for ours, theirs in zip(with_gradients(upsample_conv2d, other, weight), expected, strict=True):
            assert relative(ours, theirs) < TOLERANCE
    # A gradient without memory of its own.
    gradient, = torch.autograd.grad(upsample_conv2d(x, weight).sum(), weight)
    assert relative(gradient, torch.autograd.grad(plain(x, weight).sum(), weight)[0]) < TOLERANCE


@pytest.mark.usefixtures("products")
def test_gradients_of_gradients() -> None:
    x, weight = drawn((2, 3, 2, 3), 2)
    assert torch.autograd.gradgradcheck(upsample_conv2d, (x, weight))
    assert torch.autograd.gradgradcheck(lambda x: upsample_conv2d(x, weight.detach()), x)


def test_only_gradients_that_are_asked_for(products: pytest.MonkeyPatch) -> None:
    x, weight = drawn((2, 3, 4, 4), 2)
    expected = torch.autograd.grad(plain(x, weight).square().sum(), (x, weight))
    with products.context() as patched:
        patched.setattr(Products, "_taps", lambda *args: pytest.fail("of a frozen weight"))
        patched.setattr(kernels, "taps_of_kernels", lambda *args: pytest.fail("of a frozen weight"))
        gradient, = torch.autograd.grad(upsample_conv2d(x, weight.detach()).square().sum(), x)
        assert relative(gradient, expected[0]) < TOLERANCE
    y = upsample_conv2d(x.detach(), weight)
    products.setattr(Products, "_kernels", lambda *args: pytest.fail("of an input without gradient"))
    products.setattr(kernels, "kernels_of_taps", lambda *args: pytest.fail("of an input without gradient"))
    assert relative(torch.autograd.grad(y.square().sum(), weight)[0], expected[1]) < TOLERANCE


@pytest.mark.usefixtures("products")
def test_products_under_autocast() -> None:
    x, weight = (tensor.detach().float().requires_grad_() for tensor in drawn((4, 64, 6, 4), 32))
    expected = with_gradients(plain, x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        y, gradient_x, gradient_weight = with_gradients(upsample_conv2d, x, weight)
    assert y.dtype == torch.bfloat16
    assert gradient_x.dtype == gradient_weight.dtype == torch.float32
    for ours, theirs in zip((y, gradient_x, gradient_weight), expected, strict=True):
        assert 1e-4 < relative(ours, theirs) < 1e-2  # a few roundings to 8 bits, no more


def test_the_form_is_chosen_by_device_channels_and_size(with_kernels: bool) -> None:
    least, many = MIN_CHANNELS[with_kernels], MANY_PIXELS[with_kernels]

    def form(products: int, n: int = 1, side: int = 1) -> str:
        x, weight = torch.zeros(n, 64, side, side), torch.zeros(products // 64, 64, 3, 3, requires_grad=True)
        made = upsample_conv2d(x, weight).grad_fn
        return f"products {made.step}" if "FewerProducts" in type(made).__name__ else type(made).__name__

    assert form(least[1]) == form(least[1], n=3) == "products 1"
    assert form(least[1] - 64) == "ConvolutionBackward0"
    side = math.isqrt(many)
    assert form(least[2], side=side) == form(least[1], n=3, side=side) == "products 2"
    assert form(least[2], n=2, side=side - 1) == form(least[2] - 64, side=side) == "ConvolutionBackward0"
    x, weight = torch.zeros(2, 128, 4, 3, device="meta"), torch.zeros(128, 128, 3, 3, device="meta")
    assert upsample_conv2d(x, weight).shape == (2, 128, 8, 6)
    assert upsample_conv2d(torch.zeros(0, 128, 4, 3), torch.zeros(128, 128, 3, 3)).shape == (0, 128, 8, 6)


@pytest.mark.usefixtures("products")
def test_gates_follow_the_order_in_memory() -> None:
    x, weight = drawn((2, 3, 4, 5), 6)
    y = upsample_conv2d(x, weight)
    assert channels_last(y)
    gradient = torch.autograd.grad(gated(y).square().sum(), y)[0]
    plain_y = y.detach().contiguous().requires_grad_()
    assert relative(gradient, torch.autograd.grad(F.glu(plain_y, dim=1).square().sum(), plain_y)[0]) < TOLERANCE
    assert channels_last(gradient)
    assert channels_last(gated(y))


@pytest.mark.parametrize("shape", [(2, 5, 8, 12), (1, 3, 5, 7), (2, 4, 2, 3), (1, 70, 8, 9)])
@pytest.mark.parametrize("tiles", [1, 5, 512])
@pytest.mark.usefixtures("with_kernels")
def test_winograd_equals_the_plain_convolution(shape: tuple[int, ...], tiles: int,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "MIN_CHANNELS", {True: {0: 0}, False: {0: 0}})
    monkeypatch.setattr(winograd_sums, "TILES", tiles)
    monkeypatch.setattr(winograd_kernels, "AT_ONCE", tiles)
    x, weight = drawn(shape, 6)
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = conv3x3(last, weight)
    assert type(y.grad_fn).__name__ == "_WinogradBackward"
    assert channels_last(y)
    expected = with_gradients(lambda x, weight: F.conv2d(x, weight, padding=1), x, weight)
    for ours, theirs in zip(with_gradients(conv3x3, last, weight), expected, strict=True):
        assert relative(ours, theirs) < TOLERANCE
    small = last.detach()[:1, :3, :2, :3].contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradgradcheck(conv3x3, (small, weight.detach()[:, :3].requires_grad_()))


@pytest.mark.usefixtures("with_kernels")
def test_winograd_rounds_little() -> None:
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 256, 16, 16, generator=rng), torch.randn(64, 256, 3, 3, generator=rng)
    last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = with_gradients(lambda x, weight: F.conv2d(x, weight, padding=1), x.double().requires_grad_(),
                              weight.double().requires_grad_())
    y = conv3x3(last, weight.requires_grad_())
    assert type(y.grad_fn).__name__ == "_WinogradBackward"
    for ours, theirs in zip(with_gradients(conv3x3, last, weight), expected, strict=True):
        assert relative(ours, theirs) < 3e-6


@pytest.mark.parametrize("place", [0, 1])
def test_winograd_is_chosen_by_channels_pixels_layout_and_type(place: int, with_kernels: bool) -> None:
    limits = list(winograd.MIN_CHANNELS[with_kernels].items())
    if place == len(limits):
        pytest.skip("one limit without kernels")
    pixels, least = limits[place]
    side = math.isqrt(pixels)

    def form(channels: int, dtype: torch.dtype, order: torch.memory_format, side: int = side) -> str:
        x = torch.zeros(1, channels, side, side, dtype=dtype).contiguous(memory_format=order)
        weight = torch.zeros(least // 32, channels, 3, 3, dtype=dtype, requires_grad=True)
        return type(conv3x3(x, weight).grad_fn).__name__

    last = torch.channels_last
    assert form(32, torch.float32, last) == form(32, torch.float64, last) == "_WinogradBackward"
    plain = {form(31, torch.float32, last), form(32, torch.bfloat16, last),
             form(32, torch.float32, torch.contiguous_format), form(32, torch.float32, last, 7)}
    assert plain == {"ConvolutionBackward0"}
    with torch.autocast("cpu", torch.bfloat16):
        assert form(32, torch.float32, last) == "ConvolutionBackward0"


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_of_maps_with_the_channels_last(affine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pg_modules.batch_norm.NUMBERS", 3000)  # several parts
    x = torch.randn(3, 8, 33, 20, generator=torch.Generator().manual_seed(0)) * 0.5 + 2
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    ours, theirs = BatchNorm2d(8, affine=affine), nn.BatchNorm2d(8, affine=affine).double()
    wide = x.double().requires_grad_()
    y, expected = ours(last), theirs(wide)
    assert channels_last(y)
    assert relative(y, expected) < 1e-6
    inputs = [(last, *ours.parameters()), (wide, *theirs.parameters())]
    grads = [torch.autograd.grad(out, own, target.to(out)) for out, own in zip((y, expected), inputs, strict=True)]
    assert max(relative(one, other) for one, other in zip(*grads, strict=True)) < 1e-5
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name].to(value.dtype), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.eval()(last), theirs.eval()(wide).float())


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(("make", "shape"), [
    (lambda: SNConv2d(4, 6, 3, padding=1), (4, 3)), (lambda: SNConvTranspose2d(4, 6, (3, 3)), (4, 3)),
    (lambda: SNLinear(4, 9), (4,)), (lambda: SNUpConv2d(4, 6), (4, 3))])
def test_dividing_the_input_equals_dividing_the_weight(make: Callable[[], nn.Module], shape: tuple[int, ...],
                                                       small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net: Any = make().double()
    other = copy.deepcopy(net)
    x = torch.randn(2, *shape, *shape[1:], dtype=torch.double, requires_grad=True)
    monkeypatch.setattr("pg_modules.layers.LARGER", 0 if small else 1e9)
    y = net(x)
    monkeypatch.setattr(type(other), "divided", lambda self, x: (x, self.normalized_weight()))
    expected = other(x)
    assert relative(y, expected) < TOLERANCE
    target = torch.randn_like(y)
    weights = [net.weight, other.weight]
    ours, theirs = (torch.autograd.grad(out, (x, weight), target)
                    for out, weight in zip((y, expected), weights, strict=True))
    assert relative(ours[0], theirs[0]) < TOLERANCE
    assert relative(ours[1], theirs[1]) < TOLERANCE
    for name in ("u", "v"):
        torch.testing.assert_close(getattr(net, name), getattr(other, name), rtol=0, atol=0)


def test_a_large_weight_is_not_divided() -> None:
    net = SNConv2d(8, 8, 3)
    side = int((net.weight.numel() / LARGER / 8) ** 0.5)
    for n in (1, 5):  # samples don't count
        assert net.divided(torch.randn(n, 8, side, side))[1].data_ptr() == net.weight.data_ptr()
        x = torch.randn(n, 8, side + 1, side + 1)
        assert net.divided(x)[0] is x
