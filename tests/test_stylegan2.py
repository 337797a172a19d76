"""StyleGAN2: the official numbers, fast operations against plain ones, and every shape and condition."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_parity import FOLDER, OWN_FOLDER, fixture, relative

from dnnlib import UserError
from pg_modules import kernels, styled_activation, stylegan2, stylegan2_ops, transposed_conv
from pg_modules.stylegan2 import Generator
from pg_modules.stylegan2_ops import (
    Dense,
    EqualConv,
    bias_act,
    demodulation,
    fir_filter,
    modulated_conv,
    modulated_conv_plain,
    upfirdn2d,
    upfirdn2d_plain,
)
from training.official.names import fill, own_names, stylegan2_names

EXACT = {"rtol": 1e-9, "atol": 1e-9}
TOLERANCE = 1e-4
SMALL = {"z_dim": 8, "w_dim": 16, "img_resolution": 32, "channel_base": 256, "channel_max": 16}


def official(folder: Path) -> tuple[Generator, dict[str, Any]]:
    data = fixture("stylegan2_64.pt", folder)
    net = Generator(z_dim=64, w_dim=64, img_resolution=64, channel_base=1024, channel_max=64)
    fill(net, own_names(data["state_dict"], stylegan2_names))
    return net.eval(), data


class Source:
    """Noise from a seed, as training and sampling draw it."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, n: int, height: int, width: int) -> torch.Tensor:
        return torch.randn(n, 1, height, width, generator=self.generator)


def normal(*shape: int, seed: int = 0, grad: bool = False) -> torch.Tensor:
    """Standard normal float64."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.requires_grad_(grad)


@pytest.mark.parametrize("folder", [OWN_FOLDER, FOLDER], ids=["own", "shared"])
@torch.no_grad()
def test_official_numbers(folder: Path) -> None:
    net, data = official(folder)
    assert relative(net.map(data["z"]), data["w"]) < TOLERANCE
    assert relative(net.map(data["z"], truncation=0.5), data["w_truncated_05"]) < TOLERANCE
    assert relative(net(data["z"], noise="const"), data["image_noise_const"]) < TOLERANCE
    assert relative(net(data["z"]), data["image_noise_none"]) < TOLERANCE
    # The two recorded images do differ by more than the tolerance.
    assert relative(data["image_noise_const"], data["image_noise_none"]) > 100 * TOLERANCE


@torch.no_grad()
def test_truncation_moves_w_towards_its_mean() -> None:
    net, data = official(OWN_FOLDER)
    mean = torch.linspace(-1, 1, 64)
    net.mapping.w_avg.copy_(mean)
    torch.testing.assert_close(net.map(data["z"], truncation=0.7), mean + 0.7 * (data["w"] - mean))
    torch.testing.assert_close(net.map(data["z"], truncation=0.0), mean.expand(4, 10, 64))
    expected = net.synthesize(mean + 0.7 * (data["w"] - mean))
    torch.testing.assert_close(net(data["z"], truncation=0.7), expected)


def test_mean_of_w_follows_training_passes_alone() -> None:
    net = Generator(**SMALL)
    z = torch.randn(6, 8)
    first = net.map(z)[:, 0].mean(dim=0)
    torch.testing.assert_close(net.mapping.w_avg, 0.002 * first)
    net(z)
    torch.testing.assert_close(net.mapping.w_avg, (0.002 + 0.998 * 0.002) * first)
    before = net.mapping.w_avg.clone()
    net.eval()(z)
    torch.testing.assert_close(net.mapping.w_avg, before, rtol=0, atol=0)


def test_size_at_256_px_is_the_published_one() -> None:
    with torch.device("meta"):
        net = Generator()
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(24.6e6, rel=2e-3)
    assert net.num_ws == 14


@pytest.mark.parametrize(("up", "down", "padding", "gain"), [
    (1, 1, 1, 4.0), (1, 1, (2, 1, 0, 3), 1.0), (1, 2, 1, 1.0), (2, 1, (2, 1, 2, 1), 4.0), (2, 1, 0, 1.0),
    (2, 1, (5, 4, 1, 3), 1.0), (2, 2, (1, 3, 2, 2), 1.0), (3, 2, 2, 1.0), (1, 1, (-1, 2, 0, -2), 1.0),
])
def test_resampling_against_its_definition(up: int, down: int, padding: Any, gain: float) -> None:
    x, f = normal(2, 3, 6, 9, grad=True), normal(4, 3, seed=1)  # nothing symmetric or square
    fast, plain = (op(x, f, up, down, padding, gain) for op in (upfirdn2d, upfirdn2d_plain))
    torch.testing.assert_close(fast, plain, **EXACT)
    weight = normal(*plain.shape, seed=2)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (fast, plain)]
    torch.testing.assert_close(*gradients, **EXACT)


def test_filter_keeps_constants_and_removes_the_finest_stripes() -> None:
    x = torch.ones(1, 2, 8, 8)
    inside = upfirdn2d(x, fir_filter(), up=2, padding=(2, 1, 2, 1), gain=4)[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(inside, torch.ones_like(inside))
    x[..., ::2] = -1
    torch.testing.assert_close(upfirdn2d(x, fir_filter()), torch.zeros(1, 2, 5, 5))


def test_activation_bias_gain_and_clamp() -> None:
    x, b = torch.tensor([[-3.0, 1.0], [2.0, 400.0]]), torch.tensor([1.0, -2.0])
    root = 2**0.5
    lrelu = torch.tensor([[-0.4, -0.2], [3.0, 398.0]]) * root
    torch.testing.assert_close(bias_act(x, b, "lrelu"), lrelu)
    torch.testing.assert_close(bias_act(x, b, "lrelu", 0.5, 256.0), 0.5 * lrelu.clamp(max=256))
    torch.testing.assert_close(bias_act(x, None, "lrelu", 1 / root), torch.tensor([[-0.6, 1.0], [2.0, 400.0]]))
    torch.testing.assert_close(bias_act(x, b), x + b)
    assert x.max() == 400  # untouched


def test_derivatives_of_the_activation() -> None:
    x, b = normal(2, 3, 4, 5, grad=True), normal(3, seed=1, grad=True)

    def run(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return bias_act(x, b, "lrelu", 0.7, 1.0)

    assert run(x, b).abs().max() == 0.7  # some are clipped
    assert torch.autograd.gradcheck(run, (x, b))
    assert torch.autograd.gradgradcheck(run, (x, b))


def test_transposed_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and gradients are torch's, in strips that cut images and join them; twice differentiable."""
    for pixels, places in ((1, 12), (1, 10_000), (10**9, 12)):
        monkeypatch.setattr(transposed_conv, "MANY_PIXELS", pixels)
        monkeypatch.setattr(transposed_conv, "MANY_CHANNELS", 1)
        monkeypatch.setattr(transposed_conv, "PLACES", places)
        x = normal(3, 4, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_(True)
        weight = normal(7, 4, 3, 3, seed=1, grad=True)
        found = transposed_conv.transposed_conv3x3(x, weight)
        expected = torch.nn.functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        torch.testing.assert_close(found, expected, **EXACT)
        assert ("_Transposed" in type(found.grad_fn).__name__) == (pixels == 1)
        gradient = normal(*found.shape, seed=2)
        for ours, theirs in zip(torch.autograd.grad(found, (x, weight), gradient),
                                torch.autograd.grad(expected, (x, weight), gradient), strict=True):
            torch.testing.assert_close(ours, theirs, **EXACT)
    monkeypatch.setattr(transposed_conv, "MANY_PIXELS", 1)
    small = normal(1, 2, 3, 2).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    assert torch.autograd.gradgradcheck(transposed_conv.transposed_conv3x3, (small, normal(2, 2, 3, 3, grad=True)))


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing() or "there are kernels")
@pytest.mark.parametrize("source", ["drawn", "const", "none"])
@pytest.mark.parametrize("n", [1, 3, 70])
def test_styled_activation(source: str, n: int) -> None:
    """In one pass it is what it is in torch's operations, with all gradients; the same for any number of threads."""
    x = (2 * normal(n, 5, 3, 4)).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    factors, weight, bias = normal(n, 5, seed=1, grad=True), normal(1, seed=2, grad=True), normal(5, seed=3, grad=True)
    noise = {"drawn": normal(n, 1, 3, 4, seed=4), "const": normal(3, 4, seed=4), "none": None}[source]
    inputs = (x, factors, weight, bias)
    made = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = styled_activation.styled_activation(x, factors, noise, weight, bias, 1.5)
        assert "_Styled" in type(found.grad_fn).__name__
        gradient = normal(*found.shape, seed=5)
        made.append([found, *torch.autograd.grad(found, inputs, gradient)])
    torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))
    expected = styled_activation.plain(x, factors, noise, weight, bias, 1.5)
    assert (expected == 1.5).any()
    theirs = torch.autograd.grad(expected, inputs, gradient, allow_unused=True, materialize_grads=True)
    for ours, their in zip(made[0], [expected, *theirs], strict=True):
        torch.testing.assert_close(ours, their, **EXACT)


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing() or "there are kernels")
def test_gradients_of_gradients_of_the_styled_activation() -> None:
    x = normal(2, 3, 2, 3).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    noise = normal(2, 1, 2, 3, seed=4)
    inputs = (x, normal(2, 3, seed=1, grad=True), normal(1, seed=2, grad=True), normal(3, seed=3, grad=True))

    def run(x: torch.Tensor, factors: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return styled_activation.styled_activation(x, factors, noise, weight, bias, 2.0)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def derivatives(op: Any, x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, **options: Any) -> list:
    """The output, its first derivatives, and those of the squared norm of the derivative by the styles."""
    y = op(x, weight, styles, **options)
    target = normal(*y.shape, seed=9)
    first = torch.autograd.grad((y * target).sum() + y.pow(3).sum(), (x, weight, styles), create_graph=True)
    second = torch.autograd.grad(first[2].square().sum(), (x, weight, styles))
    return [y, *first, *second]


@pytest.mark.parametrize(("kernel", "up", "demodulate"), [
    (3, False, True), (3, True, True), (3, True, False), (1, False, False), (3, False, False)])
def test_modulated_convolution_against_the_paper(kernel: int, up: bool, demodulate: bool) -> None:
    """Equations 1 to 3; second derivatives serve path length regularisation."""
    x, weight, styles = normal(2, 3, 4, 6, grad=True), normal(5, 3, kernel, kernel, seed=1, grad=True), normal(
        2, 3, seed=2, grad=True)
    filters = torch.outer(torch.tensor([1.0, 2.0, 4.0, 1.0]), torch.tensor([3.0, 1.0, 1.0, 2.0])).double() / 56

    def in_one(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, demodulate: bool,
               fir: torch.Tensor | None) -> torch.Tensor:
        y = modulated_conv(x, weight, styles, fir)
        return y * demodulation(weight, styles)[:, :, None, None] if demodulate else y

    options = {"demodulate": demodulate, "fir": filters if up else None}
    fast, plain = (derivatives(op, x, weight, styles, **options) for op in (in_one, modulated_conv_plain))
    assert fast[0].shape == ((2, 5, 8, 12) if up else (2, 5, 4, 6))
    for ours, reference in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, reference, **EXACT)


@pytest.mark.parametrize(("kernel", "down"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_equalised_convolution_filters_then_convolves(kernel: int, down: int) -> None:
    layer = EqualConv(3, 4, kernel, down=down, activation="lrelu", clamp=1.0).double()
    torch.nn.init.normal_(layer.bias)
    x = normal(2, 3, 6, 8)
    padding = kernel // 2 + (1 if down > 1 else 0)
    filtered = upfirdn2d_plain(x, fir_filter(), padding=padding) if down > 1 else x
    y = torch.nn.functional.conv2d(filtered, layer.weight / (3 * kernel**2) ** 0.5,
                                   padding=0 if down > 1 else kernel // 2)[:, :, ::down, ::down]
    y = torch.nn.functional.leaky_relu(y + layer.bias[:, None, None], 0.2) * 2**0.5
    torch.testing.assert_close(layer(x, 0.5), 0.5 * y.clamp(-1, 1), **EXACT)
    assert layer(x).shape == (2, 4, 6 // down, 8 // down)


def test_dense_layer_starts_alike_and_learns_slower_with_a_multiplier() -> None:
    x = torch.randn(512, 64)
    for multiplier in (1.0, 0.01):
        layer = Dense(64, 128, lr_multiplier=multiplier, bias_init=1.0)
        y = layer(x)
        assert y.mean().item() == pytest.approx(1, abs=0.05)
        assert y.std().item() == pytest.approx(1, abs=0.05)
        with torch.no_grad():
            layer.bias += 1
        torch.testing.assert_close(layer(x) - y, torch.full_like(y, multiplier), rtol=1e-3, atol=1e-5)


def test_generator_with_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Image and gradients of everything, conditioned on all there is."""
    net = Generator(**SMALL, c_parts={"label": 3, "instance": 5}, h_channels=2, aspect=(1, 2)).double().eval()
    for name, parameter in net.named_parameters():
        if name.endswith("noise.weight") or "leave" in name:
            torch.nn.init.normal_(parameter)

    def run() -> list[torch.Tensor]:
        image = net(normal(2, 8), normal(2, 8, seed=1), normal(2, 2, 4, 8, seed=2), torch.tensor([0.2, 0.5]), "const")
        return [image, *torch.autograd.grad(image.square().mean(), list(net.parameters()))]

    fast = run()
    # To the image there is no demodulation (k = 1); elsewhere the plain form has it.
    monkeypatch.setattr(stylegan2, "modulated_conv", lambda x, weight, styles, fir=None: modulated_conv_plain(
        x, weight, styles, weight.shape[2] == 3, fir))
    monkeypatch.setattr(stylegan2, "demodulation", lambda weight, styles: styles.new_ones(len(styles), len(weight)))
    monkeypatch.setattr(stylegan2, "styled_activation", styled_activation.plain)
    monkeypatch.setattr(stylegan2, "upfirdn2d", upfirdn2d_plain)
    monkeypatch.setattr(stylegan2_ops, "upfirdn2d", lambda *args, **options: pytest.fail("the fast filter was used"))
    plain = run()
    assert fast[0].dtype == torch.float64
    for ours, reference in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, reference, **EXACT)


def test_path_lengths_have_gradients() -> None:
    net = Generator(**SMALL)
    ws = net.map(torch.randn(2, 8))
    image = net.synthesize(ws, noise=Source(0))
    (jacobian,) = torch.autograd.grad((image * torch.randn_like(image)).sum(), ws, create_graph=True)
    jacobian.square().sum(dim=2).mean(dim=1).sqrt().mean().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # What only shifts the image has no part in its derivative by w.
    assert all(re.search(r"to_rgb\.bias|noise\.weight", name) for name in without), without
    assert net.mapping.layers[0].weight.grad.norm() > 0


@pytest.mark.parametrize(("aspect", "channels"), [((1, 1), 1), ((1, 2), 3), ((2, 1), 3)])
@torch.no_grad()
def test_shapes(aspect: tuple[int, int], channels: int) -> None:
    net = Generator(**SMALL, aspect=aspect, img_channels=channels)
    for noise in (None, "const", Source(0)):
        assert net(torch.randn(3, 8), noise=noise).shape == (3, channels, 32 * aspect[0], 32 * aspect[1])


@torch.no_grad()
def test_fresh_styles_are_about_one() -> None:
    for block in Generator(**SMALL).blocks.values():
        for layer in (block.conv1, block.to_rgb):
            centre = layer.affine(torch.zeros(1, 16))
            torch.testing.assert_close(centre, torch.ones_like(centre))


@torch.no_grad()
def test_which_style_goes_where() -> None:
    """As in the official generator: the style of a block's image is that of the next block's first convolution."""
    net, seen = Generator(**SMALL), {}
    for name, module in net.blocks.named_modules():
        if name.endswith("affine"):
            module.register_forward_pre_hook(lambda module, args, n=name: seen.update({n: args[0][0, 0].item()}))
    net.synthesize(torch.arange(8.0)[None, :, None].repeat(1, 1, 16))
    assert seen == {"4.conv1.affine": 0, "4.to_rgb.affine": 1, "8.conv0.affine": 1, "8.conv1.affine": 2,
                    "8.to_rgb.affine": 3, "16.conv0.affine": 3, "16.conv1.affine": 4, "16.to_rgb.affine": 5,
                    "32.conv0.affine": 5, "32.conv1.affine": 6, "32.to_rgb.affine": 7}


@torch.no_grad()
def test_maps_and_images_are_bounded() -> None:
    block = Generator(**SMALL).blocks["4"]
    for layer in (block.conv1, block.to_rgb):
        layer.bias.fill_(1000.0)
    x, img = block(None, None, [torch.randn(2, 16)] * 2, None, None)
    assert x.max() == img.max() == 256


def test_channels_that_a_style_switches_off_stay_numbers() -> None:
    x = torch.randn(2, 3, 4, 4)
    weight, styles = torch.randn(5, 3, 3, 3), torch.zeros(2, 3)
    assert (modulated_conv(x, weight, styles) * demodulation(weight, styles)[:, :, None, None]).abs().max() == 0


@torch.no_grad()
def test_noise_takes_part_once_it_has_a_strength() -> None:
    net, z = Generator(**SMALL).eval(), torch.randn(2, 8)
    torch.testing.assert_close(net(z, noise="const"), net(z), rtol=0, atol=0)
    for name, parameter in net.named_parameters():
        if name.endswith("noise.weight"):
            parameter.fill_(0.5)
    assert relative(net(z, noise="const"), net(z)) > 0.01
    torch.testing.assert_close(net(z, noise=Source(1)), net(z, noise=Source(1)), rtol=0, atol=0)
    assert relative(net(z, noise=Source(1)), net(z, noise=Source(2))) > 0.01


@torch.no_grad()
def test_parts_of_c_enter_w_one_by_one() -> None:
    net = Generator(**SMALL, c_parts={"label": 3, "instance": 5}).eval()
    assert net.c_dim == 8
    z, c = torch.randn(1, 8), torch.cat([torch.eye(3)[:1], torch.randn(1, 5)], dim=1)
    other_label = torch.cat([torch.eye(3)[1:2], c[:, 3:]], dim=1)
    other_instance = torch.cat([c[:, :3], torch.randn(1, 5)], dim=1)
    images = [net(z, each) for each in (c, other_label, other_instance)]
    assert min(relative(images[0], images[k]) for k in (1, 2)) > 0.01
    # Each is embedded without a bias at the start and then normalised, so its length does not matter.
    torch.testing.assert_close(net(z, torch.cat([c[:, :3], 7 * c[:, 3:]], dim=1)), images[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("side", [1, 8])
def test_h_enters_every_block_and_has_a_gradient_from_the_start(side: int) -> None:
    net = Generator(**SMALL, h_channels=4).eval()
    z, h = torch.randn(2, 8), torch.randn(2, 4, side, side, requires_grad=True)
    image = net(z, h=h, sigma=0.3)
    image.square().mean().backward()
    assert h.grad is not None
    assert h.grad.norm() > 0
    for block in net.blocks.values():
        assert block.scale_shift.conv.weight.grad.norm() > 0
    # It starts near the network without h: another h changes the image less than another z.
    change_h = relative(net(z, h=torch.randn(2, 4, side, side), sigma=0.3), image)
    assert 0.01 < change_h < relative(net(torch.randn(2, 8), h=h, sigma=0.3), image)


@torch.no_grad()
def test_h_is_local() -> None:
    net = Generator(**SMALL, h_channels=2).eval()
    z, h = torch.randn(1, 8), torch.randn(1, 2, 8, 8)
    other = h.clone()
    other[..., :2, :2] += 3
    change = (net(z, h=other, sigma=0.0) - net(z, h=h, sigma=0.0)).abs().mean(dim=1)[0]
    assert change[:12, :12].mean() > 3 * change[20:, 20:].mean()


@torch.no_grad()
def test_sigma() -> None:
    z, h = torch.randn(2, 8), torch.randn(2, 2, 8, 8)
    net = Generator(**SMALL, h_channels=2).eval()
    torch.testing.assert_close(net(z, h=h, sigma=0.0), net.synthesize(net.map(z), h))
    told = Generator(**SMALL, h_channels=2, sigma_input=True).eval()
    for block in told.blocks.values():
        block.scale_shift.conv.weight[:, :2] = 0  # the blocks see nothing but σ's own channel
    levels = torch.tensor([0.1, 0.6])
    both = told(z, h=h, sigma=levels)
    torch.testing.assert_close(both[1:], told(z[1:], h=h[1:], sigma=0.6))
    assert relative(told(z, h=h, sigma=0.1)[1:], both[1:]) > 1e-3


def test_wrong_conditions_are_refused() -> None:
    z, h = torch.randn(2, 8), torch.randn(2, 2, 8, 8)
    plain, labelled = Generator(**SMALL), Generator(**SMALL, c_parts={"label": 3})
    diffused = Generator(**SMALL, h_channels=2)
    plain(z, torch.zeros(2, 0))
    for run in (lambda: plain(z, torch.zeros(2, 3)), lambda: labelled(z), lambda: labelled(z, torch.zeros(2, 4))):
        with pytest.raises(ValueError, match="width"):
            run()
    for run in (lambda: plain(z, h=h, sigma=0.3), lambda: diffused(z), lambda: diffused(z, h=h),
                lambda: diffused.synthesize(diffused.map(z)), lambda: plain.synthesize(plain.map(z), h)):
        with pytest.raises(ValueError, match=r"\bh\b"):
            run()
    with pytest.raises(ValueError, match="constant"):
        plain(z, noise="constant")
    with pytest.raises(UserError, match="not 100"):
        Generator(img_resolution=100)


def test_bfloat16_stays_near_float32_and_keeps_styles_exact() -> None:
    net, data = official(OWN_FOLDER)
    styles = []
    net.blocks["16"].conv0.affine.register_forward_hook(lambda module, args, result: styles.append(result))
    expected = net(data["z"], noise="const").detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = net(data["z"], noise="const")
        image.square().mean().backward()
    assert image.dtype == torch.float32
    assert (image != image.bfloat16()).any()  # contributions of the blocks add up in float32
    assert 1e-4 < relative(image.detach(), expected) < 0.03  # rounded, and not by more than bfloat16 does
    torch.testing.assert_close(styles[1], styles[0], rtol=0, atol=0)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())


@torch.no_grad()
def test_encoder_is_built_and_copied_with_the_network() -> None:
    spec = {"class_name": "pg_modules.stylegan2_ops.Dense", "in_features": 2, "out_features": 3}
    net = Generator(**SMALL, encoder=spec)
    twin = copy.deepcopy(net).eval()
    assert "encoder.weight" in twin.state_dict()
    z = torch.randn(2, 8)
    torch.testing.assert_close(twin(z), net.eval()(z), rtol=0, atol=0)
