"""StyleGAN2-ADA: augmentation and its control, discriminator, regularisers."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dnnlib import UserError
from pg_modules import ada
from pg_modules.ada import AdaAugment, AdaptiveAugment, random_colour, random_geometry, recolour
from pg_modules.ada_warp import SYM6, _Gather, warp
from pg_modules.fastgan import Generator as FastGAN
from pg_modules.stylegan2 import Generator
from pg_modules.stylegan2_discriminator import Block, Discriminator, minibatch_std
from training.conditioning.base import Batch, Condition, Conditioning
from training.d_noise.base import DNoise
from training.d_noise.pixel import PixelDiffusion
from training.objectives import lazy_adam
from training.objectives.stylegan2_ada import StyleGAN2ADALoss, path_lengths

N = 4
ONE = torch.ones(1, dtype=torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(*shape: int) -> torch.Tensor:
    """Random float64 pictures without details near a pixel's size."""
    coarse = torch.randn(*shape[:2], 5, 5, generator=rng(), dtype=torch.float64)
    return F.interpolate(coarse, shape[2:], mode="bicubic", align_corners=True)


def matrices(*undo: torch.Tensor, n: int = 1) -> torch.Tensor:
    product = undo[0]
    for other in undo[1:]:
        product = product @ other
    return product.expand(n, 3, 3)


# Warp

def test_sym6_is_orthogonal_to_its_even_shifts() -> None:
    taps = torch.tensor(SYM6, dtype=torch.float64)
    products = [float(taps[2 * n:] @ taps[:len(taps) - 2 * n]) for n in range(6)]
    assert products == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-11)
    assert float(taps.sum()) == pytest.approx(math.sqrt(2))
    powers = torch.arange(len(taps), dtype=torch.float64) - 5
    alternating = taps * (-1) ** torch.arange(len(taps))
    # Its high-pass partner has six vanishing moments, which defines it among filters of this length.
    assert [float(alternating @ powers**k) for k in range(6)] == pytest.approx([0] * 6, abs=1e-7)


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (9, 32)])
def test_still_and_whole_pixel_warps_are_exact(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(warp(x, matrices(ada.undo_shift(0, 0), n=2)), x, rtol=0, atol=1e-9)
    moved = warp(x, matrices(ada.undo_shift(3, -2), n=2))
    torch.testing.assert_close(moved[:, :, :-2, 3:], x[:, :, 2:, :-3], rtol=0, atol=1e-9)


def test_warp_flips_rotates_and_scales() -> None:
    """Up to the filter's slight asymmetry, on smooth pictures (whose neighbouring pixels differ by up to 0.55)."""
    x = smooth(1, 2, 32, 32)
    close = {"rtol": 0, "atol": 0.08}
    torch.testing.assert_close(warp(x, matrices(ada.undo_scale(-1, 1))), x.flip(3), **close)
    clockwise = warp(x, matrices(ada.undo_rotate(ONE * math.pi / 2)))
    torch.testing.assert_close(clockwise, x.rot90(-1, (2, 3)), **close)
    twice = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)[:, :, 16:48, 16:48]
    torch.testing.assert_close(warp(x, matrices(ada.undo_scale(2, 2))), twice, **close)
    half = F.avg_pool2d(x, 2)[:, :, 2:14, 2:14]
    torch.testing.assert_close(warp(x, matrices(ada.undo_scale(0.5, 0.5)))[:, :, 10:22, 10:22], half, **close)


def test_outside_is_the_mirror_image_without_end() -> None:
    x = smooth(1, 1, 16, 16)
    moved = warp(x, matrices(ada.undo_shift(30, 0)))  # twice the distance between the outermost pixels
    torch.testing.assert_close(moved, x, rtol=0, atol=0.06)
    moved = warp(x, matrices(ada.undo_shift(15, 0)))
    torch.testing.assert_close(moved, x.flip(3), rtol=0, atol=0.1)


def test_warp_does_not_alias() -> None:
    """Stripes of a pixel fade when the picture shrinks to 0.6, instead of becoming wide ones."""
    x = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(16).expand(1, 1, 32, 32)
    shrunk = warp(x, matrices(ada.undo_scale(0.6, 0.6)))
    plain = F.grid_sample(x, F.affine_grid(matrices(ada.undo_scale(0.6, 0.6))[:, :2], [1, 1, 32, 32],
                                           align_corners=False), padding_mode="reflection", align_corners=False)
    assert shrunk.std() < 0.35 * plain.std()


def test_gradients_of_the_warp() -> None:
    x = torch.randn(2, 1, 7, 8, dtype=torch.float64, requires_grad=True)
    undo = random_geometry(2, 7, 8, 1.0, rng(3))
    assert torch.autograd.gradcheck(lambda x: warp(x, undo), (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: warp(x, undo).square(), (x,), fast_mode=True)
    grid = torch.rand(2, 3, 4, 2, dtype=torch.float64) * 2.4 - 1.2
    small = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _Gather.apply(x, grid), (small,))
    assert torch.autograd.gradgradcheck(lambda x: _Gather.apply(x, grid).square(), (small,))
    ours, = torch.autograd.grad(_Gather.apply(small, grid).square().sum(), small)
    theirs, = torch.autograd.grad(F.grid_sample(small, grid, align_corners=True).square().sum(), small)
    torch.testing.assert_close(ours, theirs)


# Colour

def test_colours_do_what_they_say() -> None:
    x = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    grey = x.mean(1, keepdim=True)
    torch.testing.assert_close(recolour(x, ada.brightness(ONE * 0.3)), x + 0.3)
    torch.testing.assert_close(recolour(x, ada.contrast(ONE * 2)), x * 2)
    torch.testing.assert_close(recolour(x, ada.luma_flip(ONE)), x - 2 * grey)
    torch.testing.assert_close(recolour(x, ada.luma_flip(ONE * 0)), x)
    torch.testing.assert_close(recolour(x, ada.saturation(ONE * 3)), grey + 3 * (x - grey))
    torch.testing.assert_close(recolour(x, ada.hue(ONE * 2 * math.pi / 3)), x.roll(1, dims=1))  # red becomes green
    small = recolour(x, ada.hue(ONE * 0.4))
    torch.testing.assert_close(small.mean(1, keepdim=True), grey)
    torch.testing.assert_close((small - grey).norm(dim=1), (x - grey).norm(dim=1))


def test_grey_images_are_coloured_as_equal_channels() -> None:
    x = torch.rand(8, 1, 4, 4, dtype=torch.float64)
    matrix = random_colour(8, 1, 1.0, rng())
    torch.testing.assert_close(recolour(x, matrix), recolour(x.expand(-1, 3, -1, -1), matrix)[:, :1])
    assert not torch.allclose(recolour(x, matrix), x)


# Pipeline

def test_no_augmentation_is_the_identity() -> None:
    augment, x = AdaAugment(), torch.randn(2, 3, 16, 16)
    assert augment(x, None) is x
    generator = rng()
    assert augment(x, generator) is x
    assert torch.equal(generator.get_state(), rng().get_state())
    augment.p = 0.5
    with pytest.raises(ValueError, match="Generator"):
        augment(x, None)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (16, 32)])
def test_pipeline_follows_the_generator(channels: int, size: tuple[int, int]) -> None:
    augment, x = AdaAugment(), smooth(8, channels, *size)
    augment.p = 0.3
    y = augment(x, rng(5))
    assert y.shape == x.shape
    assert y.dtype == torch.float64
    assert torch.equal(augment(x, rng(5)), y)
    assert not torch.equal(augment(x, rng(6)), y)
    # Image by image what the two parts say, although the pipeline only moves those that are to be moved.
    generator = rng(5)
    undo = random_geometry(8, *size, 0.3, generator)
    assert 0 < (undo == torch.eye(3)).all(dim=2).all(dim=1).sum() < 8
    expected = recolour(warp(x, undo), random_colour(8, channels, 0.3, generator))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(augment(x.float(), rng(5)), y.float(), rtol=0, atol=1e-3)


def test_statistics_of_the_geometry() -> None:
    n, height, width = 20_000, 64, 128
    undo = random_geometry(n, height, width, 1.0, rng())
    linear, shift = undo[:, :2, :2], undo[:, :2, 2]
    log_scale = -torch.linalg.det(linear).abs().log2() / 2
    assert log_scale.mean().abs() < 0.005
    assert log_scale.std().item() == pytest.approx(0.2, rel=0.03)
    assert (torch.linalg.det(linear) < 0).double().mean().item() == pytest.approx(0.5, abs=0.02)
    singular = torch.linalg.svdvals(linear)
    assert ((singular[:, 0] / singular[:, 1]).log2() / 2).square().mean().sqrt().item() == pytest.approx(0.2, rel=0.03)
    angles = torch.atan2(linear[:, 1, 0], linear[:, 1, 1])
    assert torch.complex(angles.cos(), angles.sin()).mean().abs() < 0.02
    # Shifts of the result: undo it. Uniform ± 1/8 turned and scaled, plus normal of 1/8 per side.
    back = torch.linalg.solve(linear, -shift[:, :, None]).squeeze(2)
    spread = math.exp(2 * (0.2 * math.log(2)) ** 2)  # mean square of a factor of scale, or of aspect
    assert back.square().sum(dim=1).mean().item() == pytest.approx(
        0.125**2 * (height**2 + width**2) * (1 + spread**2 / 3), rel=0.05)


@pytest.mark.parametrize(("width", "turns"), [(64, 0.75), (128, 0.0)])
def test_how_often_images_stay(width: int, turns: float) -> None:
    """Each of the augmentations happens with probability p; some of them then draw their neutral value."""
    p = 0.1
    undo = random_geometry(40_000, 64, width, p, rng())
    still = (undo == torch.eye(3)).flatten(1).all(dim=1).double().mean().item()
    # Flip, turn, whole shift (rarely by 0 both ways), scale, both rotations together, aspect, shift.
    nowhere = 1 / (2 * 8) * 1 / (2 * width / 8)
    expected = (1 - p / 2) * (1 - p * turns) * (1 - p * (1 - nowhere)) * (1 - p) ** 4
    assert still == pytest.approx(expected, abs=0.01)


def test_statistics_of_the_colour() -> None:
    matrix = random_colour(20_000, 3, 1.0, rng())
    luma = torch.full((3,), 1 / math.sqrt(3), dtype=torch.float64)
    grey = torch.einsum("i,nij,j->n", luma, matrix[:, :3, :3], luma)
    assert (grey < 0).double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert grey.abs().log2().std().item() == pytest.approx(0.5, rel=0.03)
    offset = (matrix[:, :3, 3] @ luma) / math.sqrt(3) / grey  # before contrast and luma flip
    assert offset.std().item() == pytest.approx(0.2, rel=0.03)
    colours = torch.linalg.det(matrix[:, :3, :3]) / grey  # (contrast · saturation)²
    assert (colours.log2() / 2).std().item() == pytest.approx(math.hypot(0.5, 1.0), rel=0.03)
    rare = random_colour(20_000, 3, 0.1, rng())
    still = torch.isclose(rare, torch.eye(4, dtype=torch.float64)).flatten(1).all(dim=1).double().mean().item()
    assert still == pytest.approx(0.9**4 * 0.95, abs=0.01)


# Adaptation

def test_p_follows_the_signs() -> None:
    control = AdaptiveAugment(AdaAugment(), target=0.6, ada_kimg=1)
    for step in range(1, 9):
        control.observe(torch.tensor([[3.0], [2.0], [0.1], [5.0]]))
        assert control.after_step(10) == pytest.approx(0.04 * (step // 4))
    for step in range(1, 5):  # the mean sign is 0.5 now
        control.observe(torch.tensor([[3.0], [2.0], [-0.1], [5.0]]))
        p = control.after_step(10)
        assert p == pytest.approx(0.08 if step < 4 else 0.04)
    for sign, bound in ((1, 0.25), (-1, 0.0)):
        control.ada_max = 0.25
        for _ in range(40):
            control.observe(sign * torch.ones(4, 1))
            control.after_step(10)
        assert control.pipeline.p == bound


def test_adaptation_continues_from_its_state() -> None:
    def run(control: AdaptiveAugment, steps: range) -> list[float]:
        values = []
        for step in steps:
            control.observe(torch.randn(8, 1, generator=rng(step)) + 0.7)
            values.append(control.after_step(8))
        return values

    def control() -> AdaptiveAugment:
        return AdaptiveAugment(AdaAugment(), target=0.5, ada_kimg=1)

    whole = run(control(), range(40))
    assert len(set(whole)) > 3
    first, second = control(), control()
    start = run(first, range(18))  # between two adaptations
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert start + run(second, range(18, 40)) == whole


# Discriminator

def tiny(**options) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(**{"img_resolution": 16, "channel_base": 128, "channel_max": 16, "map_layers": 2, **options})


@pytest.mark.parametrize("aspect", [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize(("channels", "c_parts", "h_shape"), [
    (3, None, None), (1, {"label": 5}, None), (3, {"label": 5, "instance": 7}, (6, 8, 8)), (3, None, (6, 1, 1))])
def test_shapes(aspect: tuple[int, int], channels: int, c_parts: dict | None, h_shape: tuple | None) -> None:
    net = tiny(img_channels=channels, aspect=aspect, c_parts=c_parts, h_channels=h_shape[0] if h_shape else 0)
    img = torch.randn(N, channels, 16 * aspect[0], 16 * aspect[1])
    c = torch.randn(N, sum(c_parts.values())) if c_parts else None
    h = torch.randn(N, *h_shape) if h_shape else None
    logits = net(img, c, h)
    assert logits.shape == (N, 1)
    assert net.last_map(img).shape[2:] == (4 * aspect[0], 4 * aspect[1])
    assert net.features(img).shape == (N, 16)
    if c is not None:
        assert not torch.equal(net(img, c.flip(0), h), logits)
        with pytest.raises(ValueError, match="width"):
            net(img, None, h)
    if h is not None:
        assert not torch.equal(net(img, c, h.flip(0)), logits)
        with pytest.raises(ValueError, match="6 channels"):
            net(img, c)
    with pytest.raises(ValueError, match="width"):
        net(img, torch.randn(N, 99), h)


def test_few_channels_are_at_least_one() -> None:
    G, D = stylegan2(channel_base=8), tiny(img_resolution=32, channel_base=8)
    assert D(G(torch.randn(N, 8))).shape == (N, 1)
    assert D.from_rgb.weight.shape[0] == 1


def test_published_size() -> None:
    """Parameters of the official network at 256 px, 28.86 M, by its layer list."""
    with torch.device("meta"):
        net = Discriminator(256)
    channels = [128, 256, 512, 512, 512, 512, 512]
    expected = 3 * 128 + 128 + 9 * 513 * 512 + 512 + 512 * 16 * 512 + 512 + 513
    for into, out in pairwise(channels):
        expected += 9 * into**2 + into + 9 * into * out + out + into * out
    assert sum(p.numel() for p in net.parameters()) == expected
    assert round(expected / 1e6, 2) == 28.86


def test_unconditional_logit_beside_the_projection() -> None:
    img = torch.randn(N, 3, 16, 16)
    label, both = tiny(c_parts={"label": 3}), tiny(c_parts={"instance": 3})
    for net, constant in ((label, False), (both, True)):
        with torch.no_grad():
            net.project.weight.zero_()
        assert (net(img, torch.randn(N, 3)).abs().sum() > 0) == constant


def test_blocks_keep_the_variance() -> None:
    block = Block(4, 6).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    expected = (block.skip(x) + block.conv1(block.conv0(x))) * math.sqrt(0.5)
    torch.testing.assert_close(block(x), expected)


def test_minibatch_std() -> None:
    x = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    y = minibatch_std(x, 4)  # of 6, groups of 3: samples 0, 2, 4 and 1, 3, 5
    assert torch.equal(y[:, :2], x)
    for k in range(6):
        expected = (x[k % 2::2].var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[k, 2], expected.expand(4, 4))


def test_freeze_counts_from_the_image() -> None:
    net = tiny()
    net.freeze(1)
    frozen = {name.split(".")[0] + name.split(".")[1] for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"from_rgbweight", "from_rgbbias", "blocks0"}
    net = tiny()
    net.freeze(0)
    assert all(p.requires_grad for p in net.parameters())
    with pytest.raises(UserError, match="2 blocks"):
        net.freeze(3)


def test_augmentation_then_noise_then_network() -> None:
    img, seen = smooth(N, 3, 16, 16).float(), []
    net = tiny(c_parts={"time": 2})
    net.augment.p = 1.0

    def image(img: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(img)
        return img * 0, torch.ones(len(img), 2)

    logits = net(img, generator=rng(1), d_noise=SimpleNamespace(image=image))
    assert torch.equal(seen[0], net.augment(img, rng(1)))
    net.augment.p = 0.0
    assert torch.equal(logits, net(img * 0, torch.ones(N, 2)))
    noise = PixelDiffusion(seed=1)
    assert tiny(c_parts={"time": noise.t_dim})(img, generator=rng(), d_noise=noise).shape == (N, 1)


def test_fast_and_plain_precision_agree() -> None:
    net, img = tiny(), torch.randn(N, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(img)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, net(img), rtol=0, atol=0.05)


# Objective

def batch_of(n: int = N, dtype: torch.dtype = torch.float32) -> Batch:
    where = torch.arange(n)
    return Batch(img=smooth(n, 3, 32, 32).to(dtype).clamp(-1, 1), labels=where % 2, indices=where, draws=where)


def stylegan2(**options) -> Generator:
    torch.manual_seed(0)
    sizes = {"z_dim": 8, "w_dim": 8, "channel_base": 256, "channel_max": 16, "img_resolution": 32}
    return Generator(**{**sizes, **options})


def objective(G: nn.Module | None = None, D: nn.Module | None = None, **options) -> StyleGAN2ADALoss:
    return StyleGAN2ADALoss(stylegan2() if G is None else G, tiny(img_resolution=32) if D is None else D,
                            Conditioning(), DNoise(), batch=N, **options)


def test_phases_are_due_at_their_intervals() -> None:
    loss = objective(g_interval=2, d_interval=3)
    names = [[phase.name for phase in loss.phases(step)] for step in range(4)]
    assert names == [["G", "G_path_length", "D", "D_r1"], ["G", "D"], ["G", "G_path_length", "D"], ["G", "D", "D_r1"]]
    assert [phase.net for phase in loss.phases(0)] == ["G", "G", "D", "D"]
    without = objective(pl_weight=0.0, r1_gamma=0.0)
    assert [phase.name for phase in without.phases(0)] == ["G", "D"]
    logged = {name for phase in loss.phases(0) for terms in phase.terms(batch_of(), rng()) for name in terms.log}
    assert logged == {"Loss/G/loss", "Loss/pl_penalty", "Loss/r1_penalty", *(
        f"Loss/{what}/{kind}" for what in ("D", "scores", "signs") for kind in ("real", "fake"))}


def test_losses_and_adaptations_see_the_right_logits() -> None:
    loss, batch, seen = objective(), batch_of(), []
    loss.judge = lambda img, condition, rng: torch.full((len(img), 1), 2.0 if img is batch.img else -3.0)
    loss.d_noise.observe = seen.append
    fake, real = loss.discriminator_terms(batch, rng())
    assert fake.loss.item() == pytest.approx(math.log1p(math.exp(-3)))
    assert real.loss.item() == pytest.approx(math.log1p(math.exp(-2)))
    assert loss.generator_terms(batch, rng()).loss.item() == pytest.approx(math.log1p(math.exp(3)))
    assert [logits.tolist() for logits in seen] == [[[2.0]] * N]
    assert loss.ada is not None
    assert (float(loss.ada.signs), loss.ada.count) == (N, N)


def test_defaults_that_depend_on_the_run() -> None:
    assert objective().r1_gamma == pytest.approx(0.0002 * 32**2 / N)
    wide = tiny(img_resolution=32, aspect=(1, 2))
    assert objective(stylegan2(aspect=(1, 2)), wide).r1_gamma == pytest.approx(0.0002 * 32 * 64 / N)
    lr, betas = lazy_adam(0.002, (0.0, 0.99), 4)
    assert (lr, *betas) == pytest.approx((0.0016, 0.0, 0.99**0.8))


def test_generators_without_mapping_are_refused() -> None:
    fastgan = FastGAN(z_dim=8, ngf=2, img_resolution=32)
    with pytest.raises(UserError, match="--cfg"):
        objective(fastgan)
    loss = objective(fastgan, pl_weight=0.0, style_mixing=0.0)
    assert torch.isfinite(loss.generator_terms(batch_of(), rng()).loss)


class WithMaps(Conditioning):
    """Instance maps as conditions."""

    def condition(self, batch: Batch, G: nn.Module, generator: torch.Generator) -> Condition:
        return Condition(h=torch.randn(len(batch.img), 4, 2, 2, generator=generator), sigma=0.3)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_all_phases_with_instance_maps(amp: str) -> None:
    G, D = stylegan2(h_channels=4), tiny(img_resolution=32, h_channels=4)
    loss = StyleGAN2ADALoss(G, D, WithMaps(), DNoise(), batch=N, amp=amp)
    D.augment.p = 0.5
    for phase in loss.phases(0):
        net = G if phase.net == "G" else D
        net.zero_grad()
        for terms in phase.terms(batch_of(), rng()):
            terms.loss.backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        assert all(torch.isfinite(g).all() for g in gradients)
        assert sum(g.abs().sum() for g in gradients) > 0
    assert G.blocks["8"].scale_shift.conv.weight.grad is not None
    assert loss.after_step(N) == {"ADA/p": 0.5}
    assert objective(D=tiny(img_resolution=32, ada=False)).after_step(N) == {}


def test_r1_against_the_gradient_by_hand() -> None:
    """The penalty by finite differences along the gradient's own direction, and its derivative by D's weights."""
    D = tiny(img_resolution=32, ada=True).double()
    D.augment.p = 0.7
    loss, batch = objective(D=D, r1_gamma=3.0, d_interval=5), batch_of(dtype=torch.float64)
    terms = loss.r1_terms(batch, rng(2))

    def total(img: torch.Tensor) -> torch.Tensor:
        return D(img, generator=rng(2)).sum()

    img = batch.img.clone().requires_grad_(True)
    gradient, = torch.autograd.grad(total(img), img)
    with torch.no_grad():
        for k in range(N):
            step = torch.zeros_like(img)
            step[k] = gradient[k] * 1e-5
            slope = (total(img + step) - total(img - step)) / 2e-5
            torch.testing.assert_close(terms.log["Loss/r1_penalty"][k], slope, rtol=1e-6, atol=0)
    torch.testing.assert_close(terms.loss, 5 * 3 / 2 * gradient.square().sum() / N)
    weight = D.from_rgb.weight
    analytic, = torch.autograd.grad(terms.loss, weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[3, 1] += sign * 1e-5
        values.append(loss.r1_terms(batch, rng(2)).loss.detach())
        with torch.no_grad():
            weight[3, 1] -= sign * 1e-5
    torch.testing.assert_close((values[0] - values[1]) / 2e-5, analytic[3, 1].sum(), rtol=1e-5, atol=1e-9)


class LinearToy(nn.Module):
    """Images that are linear in w: all path lengths are known."""

    has_mapping, z_dim, num_ws = True, 4, 3

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(self.num_ws, 4, 3 * 8 * 8, dtype=torch.float64))

    def map(self, z: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        return z[:, None].repeat(1, self.num_ws, 1).double().requires_grad_(True)

    def modulate(self, h: None, z: torch.Tensor, sigma: float) -> None:
        return None

    def synthesize(self, ws: torch.Tensor, h_hat: None, noise: object) -> torch.Tensor:
        return torch.einsum("nlw,lwp->np", ws, self.matrix).view(-1, 3, 8, 8)


def test_path_length_of_a_linear_generator() -> None:
    toy = LinearToy()
    ws = toy.map(torch.randn(N, 4), None)
    y = torch.randn(N, 3, 8, 8, dtype=torch.float64)
    expected = torch.einsum("lwp,np->nlw", toy.matrix, y.flatten(1)).square().sum(2).mean(1).sqrt()
    torch.testing.assert_close(path_lengths(toy.synthesize(ws, None, None), ws, y), expected)

    loss = objective(toy, pl_weight=3.0, pl_decay=0.25, pl_batch_shrink=2, g_interval=4)
    loss.draw_z = lambda batch, rng: torch.randn(len(batch.img), 4, generator=rng, dtype=torch.float64)
    means, seen = [0.0], []
    for step in range(3):
        terms = loss.path_length_terms(batch_of(), rng(step))
        seen.append(terms.log["Loss/pl_penalty"])
        means.append(float(loss.pl_mean))
        assert len(seen[-1]) == N // 2
        torch.testing.assert_close(terms.loss.detach(), 12 * seen[-1].mean())
    # The mean of lengths ℓ that the mean a has followed by a quarter, from a and the penalties (ℓ − a)².
    length = (means[1] - 0.75 * means[0]) / 0.25
    assert length == pytest.approx(float(toy.matrix.detach().square().sum(dim=(1, 2)).mean().div(64).sqrt()), rel=0.3)
    assert means[1] < means[2] < means[3] < 2 * length
    gradient, = torch.autograd.grad(terms.loss, toy.matrix)
    assert gradient.abs().sum() > 0


def test_styles_are_mixed_from_a_random_layer_on() -> None:
    loss, z = objective(style_mixing=1.0), torch.randn(2, 8)
    own = loss.G.map(z)[:, 0]
    starts = set()
    for seed in range(40):
        ws = loss.mixed_styles(Condition(), z, rng(seed))
        mine = (ws == own[:, None]).all(dim=2).all(dim=0).tolist()
        start = mine.index(False)
        assert mine == [k < start for k in range(len(mine))]
        starts.add(start)
    assert starts == set(range(1, loss.G.num_ws))
    loss.style_mixing = 0.25
    unmixed = sum(torch.equal(loss.mixed_styles(Condition(), z, rng(seed)), loss.G.map(z)) for seed in range(100))
    assert 60 <= unmixed <= 90


def test_a_run_continues_bit_for_bit() -> None:
    def start() -> tuple[StyleGAN2ADALoss, dict[str, torch.optim.Adam]]:
        loss = objective(g_interval=2, d_interval=3, ada_kimg=0.05, ada_target=-1.0)
        return loss, {name: torch.optim.Adam(net.parameters(), 1e-3, (0.0, 0.99))
                      for name, net in (("G", loss.G), ("D", loss.D))}

    def run(loss: StyleGAN2ADALoss, optimizers: dict[str, torch.optim.Adam], steps: range) -> dict[str, float]:
        values = {}
        for step in steps:
            for k, phase in enumerate(loss.phases(step)):
                optimizers[phase.net].zero_grad()
                for terms in phase.terms(batch_of(), rng(10 * step + k)):
                    terms.loss.backward()
                optimizers[phase.net].step()
            values = loss.after_step(N)
        return values

    loss, optimizers = start()
    run(loss, optimizers, range(6))
    assert loss.ada is not None
    assert loss.ada.pipeline.p > 0
    assert loss.ada.count > 0
    resumed, others = start()
    for part, other in ((loss, resumed), (loss.G, resumed.G), (loss.D, resumed.D), *zip(
            optimizers.values(), others.values(), strict=True)):
        other.load_state_dict(copy.deepcopy(part.state_dict()))
    assert run(loss, optimizers, range(6, 9)) == run(resumed, others, range(6, 9))
    assert torch.equal(loss.pl_mean, resumed.pl_mean)
    for net, other in ((loss.G, resumed.G), (loss.D, resumed.D)):
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q)
