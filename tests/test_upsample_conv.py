"""Nearest ×2 and 3×3 convolution in nine products, and division by the spectral norm, against their plain forms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pg_modules import upsample_conv
from pg_modules.layers import LARGER, SNConv2d, SNConvTranspose2d, SNLinear, SNUpConv2d
from pg_modules.upsample_conv import MIN_CHANNELS, upsample_conv2d

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


@pytest.fixture
def nine_products(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The fast form for any number of channels."""
    monkeypatch.setattr(upsample_conv, "MIN_CHANNELS", 1)
    return monkeypatch


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (1, 3, 5, 7), (3, 4, 8, 4), (2, 3, 1, 1), (1, 2, 1, 6)])
@pytest.mark.parametrize("sizes", [{}, {"COLUMNS": 9, "BLOCK": 4}, {"COLUMNS": 1, "BLOCK": 1}])
def test_nine_products_equal_the_plain_order(nine_products: pytest.MonkeyPatch, shape: tuple[int, ...],
                                             sizes: dict[str, int]) -> None:
    for name, value in sizes.items():
        nine_products.setattr(upsample_conv, name, value)
    x, weight = drawn(shape, 6)
    for ours, theirs in zip(with_gradients(upsample_conv2d, x, weight), with_gradients(plain, x, weight), strict=True):
        assert ours.shape == theirs.shape
        assert relative(ours, theirs) < TOLERANCE


@pytest.mark.usefixtures("nine_products")
def test_nine_products_of_maps_in_other_layouts() -> None:
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


@pytest.mark.usefixtures("nine_products")
def test_gradients_of_gradients() -> None:
    x, weight = drawn((2, 3, 2, 3), 2)
    assert torch.autograd.gradgradcheck(upsample_conv2d, (x, weight))
    assert torch.autograd.gradgradcheck(lambda x: upsample_conv2d(x, weight.detach()), x)


def test_only_gradients_that_are_asked_for(nine_products: pytest.MonkeyPatch) -> None:
    x, weight = drawn((2, 3, 4, 4), 2)
    expected = torch.autograd.grad(plain(x, weight).square().sum(), (x, weight))
    nine_products.setattr(upsample_conv, "_taps_gradient", lambda *args: pytest.fail("of a frozen weight"))
    gradient, = torch.autograd.grad(upsample_conv2d(x, weight.detach()).square().sum(), x)
    assert relative(gradient, expected[0]) < TOLERANCE
    nine_products.undo()
    nine_products.setattr(upsample_conv, "MIN_CHANNELS", 1)
    y = upsample_conv2d(x.detach(), weight)
    nine_products.setattr(upsample_conv, "_combined_taps", lambda *args: pytest.fail("of an input without gradient"))
    assert relative(torch.autograd.grad(y.square().sum(), weight)[0], expected[1]) < TOLERANCE


@pytest.mark.usefixtures("nine_products")
def test_nine_products_under_autocast() -> None:
    x, weight = (tensor.detach().float().requires_grad_() for tensor in drawn((4, 64, 6, 4), 32))
    expected = with_gradients(plain, x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        y, gradient_x, gradient_weight = with_gradients(upsample_conv2d, x, weight)
    assert y.dtype == torch.bfloat16
    assert gradient_x.dtype == gradient_weight.dtype == torch.float32
    for ours, theirs in zip((y, gradient_x, gradient_weight), expected, strict=True):
        assert 1e-4 < relative(ours, theirs) < 1e-2  # a few roundings to 8 bits, no more


def test_the_form_is_chosen_by_device_and_channels() -> None:
    def form(channels: int, out: int, n: int = 1) -> str:
        x, weight = torch.zeros(n, channels, 1, 1), torch.zeros(out, channels, 3, 3, requires_grad=True)
        return type(upsample_conv2d(x, weight).grad_fn).__name__

    assert form(64, MIN_CHANNELS // 64) == form(64, MIN_CHANNELS // 64, n=3) == "_NineProductsBackward"
    assert form(64, MIN_CHANNELS // 64 - 1) == "ConvolutionBackward0"
    x, weight = torch.zeros(2, 128, 4, 3, device="meta"), torch.zeros(128, 128, 3, 3, device="meta")
    assert upsample_conv2d(x, weight).shape == (2, 128, 8, 6)
    assert upsample_conv2d(torch.zeros(0, 128, 4, 3), torch.zeros(128, 128, 3, 3)).shape == (0, 128, 8, 6)


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
        assert net.divided(torch.randn(n, 8, side, side))[1] is net.weight
        x = torch.randn(n, 8, side + 1, side + 1)
        assert net.divided(x)[0] is x
