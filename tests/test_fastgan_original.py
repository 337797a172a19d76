"""The original FastGAN: its discriminator's shapes, reconstructions and conditions, and its objective."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnnlib import UserError
from pg_modules.fastgan import Generator
from pg_modules.fastgan_discriminator import Discriminator, quarter, shrink
from torch_utils.rng import generator
from training.conditioning.base import Batch, Conditioning
from training.d_noise.base import DNoise
from training.d_noise.pixel import T_DIM, PixelDiffusion
from training.objective import ADVERSARIAL
from training.objectives import fastgan_original
from training.objectives.fastgan_original import FastGANLoss, perceptual_distance

DECODERS = ("decoder_big", "decoder_small", "decoder_part")


def discriminator(resolution: int = 32, **options) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(resolution, **{"ndf": 8, "diffaug": "", **options})


def images(n: int, height: int, width: int | None = None, channels: int = 3) -> torch.Tensor:
    """Smooth images in [-1, 1]."""
    coarse = torch.rand(n, channels, 4, 4, generator=generator("images")) * 2 - 1
    return nn.functional.interpolate(coarse, (height, width or height), mode="bilinear")


def set_up(d_noise: DNoise | None = None, c_dim: int = 0, **options) -> tuple[FastGANLoss, Batch]:
    parts = {"label": c_dim} if c_dim else {}
    d_parts = {**parts, "time": d_noise.t_dim} if d_noise is not None and d_noise.t_dim else parts
    torch.manual_seed(0)
    G = Generator(z_dim=16, img_resolution=32, ngf=4, c_parts=parts, original=True)
    loss = FastGANLoss(G, discriminator(c_parts=d_parts, diffaug="color,translation"), Conditioning(c_dim),
                       d_noise or DNoise(), **options)
    numbers = torch.arange(4)
    return loss, Batch(images(4, 32), labels=numbers % max(c_dim, 1), indices=numbers, draws=numbers)


# Discriminator: shapes

@pytest.mark.parametrize(("resolution", "aspect", "channels", "ndf"), [
    (32, (1, 1), 3, 8), (64, (1, 2), 3, 8), (64, (2, 1), 1, 8), (128, (1, 1), 3, 8), (256, (1, 1), 1, 8),
    (512, (1, 1), 3, 1), (1024, (1, 1), 3, 1),
])
def test_shapes(resolution: int, aspect: tuple[int, int], channels: int, ndf: int) -> None:
    net = discriminator(resolution, img_channels=channels, aspect=aspect, ndf=ndf).eval()
    height, width = resolution * aspect[0], resolution * aspect[1]
    img = images(1, height, width, channels)
    small_side = min(128, resolution // 2)
    count = 2 * (8 * aspect[0] - 3) * (8 * aspect[1] - 3)
    with torch.no_grad():
        logits, made = net.reconstruct(img, generator=generator("part"))
        again = net(img)
        sixteen, last = net._large(img)
    assert logits.shape == (1, count)
    torch.testing.assert_close(again, logits)
    assert sixteen.shape[1:] == (max(4 * ndf, 1), 16 * aspect[0], 16 * aspect[1])
    assert last.shape[1:] == (8 * ndf, 8 * aspect[0], 8 * aspect[1])
    assert net.features(img).shape == (1, 8 * ndf)
    size = (1, channels, small_side * aspect[0], small_side * aspect[1])
    assert [tuple(image.shape) for pair in made for image in pair] == [size] * 6
    assert all(pair.img.abs().max() <= 1 for pair in made)


def test_official_channels_and_gates_at_256() -> None:
    net = Discriminator(256, diffaug="")
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert {side: shapes[f"stages.{side}.main.0.weight"][0] for side in (128, 64, 32, 16, 8)} == {
        128: 32, 64: 64, 32: 128, 16: 256, 8: 512}
    assert {name: shape[:2] for name, shape in shapes.items() if name.endswith("gate.conv1.weight")} == {
        "stages.32.gate.conv1.weight": (128, 16), "stages.16.gate.conv1.weight": (256, 32),
        "stages.8.gate.conv1.weight": (512, 64)}
    assert [shapes[f"small.{k}.0.weight"][0] for k in range(4)] == [32, 64, 128, 256]
    assert shapes["logits_big.cls.weight"] == (1, 1024, 4, 4)
    assert shapes["logits_small.cls.weight"] == (1, 256, 4, 4)
    weights = net.get_parameter("stages.8.main.0.weight").detach()
    assert float(weights.std()) == pytest.approx(0.02, rel=0.01)


def test_gates_listen_to_the_larger_map() -> None:
    stage = discriminator(64).stages["8"].eval().requires_grad_(False)
    x = torch.randn(2, 32, 16, 16)
    big = torch.randn(2, 8, 64, 64)
    assert not torch.allclose(stage(x, big), stage(x, -big))
    ungated = (stage.main(x) + stage.direct(x)) / 2  # type: ignore[operator]
    ratio = stage(x, big) / ungated
    torch.testing.assert_close(ratio, ratio.mean(dim=(2, 3), keepdim=True).expand_as(ratio), rtol=1e-3, atol=1e-3)
    assert 0 < float(ratio.min()) <= float(ratio.max()) < 1


def test_unknown_resolution_and_augmentation() -> None:
    with pytest.raises(UserError, match="48"):
        Discriminator(48)
    with pytest.raises(ValueError, match="blur"):
        Discriminator(32, diffaug="blur")


# Discriminator: images and reconstructions

@pytest.mark.parametrize("part", range(4))
def test_quarters_of_maps_and_images_match(part: int) -> None:
    img = images(1, 64, 128)
    torch.testing.assert_close(quarter(shrink(img, (16, 32)), part), shrink(quarter(img, part), (8, 16)))
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    cut = quarter((10 * rows + columns)[None, None], part)[0, 0]
    assert cut.tolist() == [[10 * (y + 2 * (part // 2)) + x + 3 * (part % 2) for x in range(3)] for y in range(2)]


def test_the_part_decoder_sees_the_quarter_of_its_target() -> None:
    net = discriminator(64).eval()
    seen: list[torch.Tensor] = []
    net.decoder_part.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    img = images(2, 64)
    sixteen, _ = net._large(img)
    parts = set()
    for seed in range(12):
        _, made = net.reconstruct(img, generator=generator(seed))
        matches = [part for part in range(4) if torch.equal(seen[-1], quarter(sixteen, part))]
        assert len(matches) == 1
        torch.testing.assert_close(made[2].target, quarter(img, matches[0]))
        torch.testing.assert_close(made[0].target, shrink(img, (32, 32)))
        assert made[0].target is made[1].target
        parts.update(matches)
    assert parts == {0, 1, 2, 3}


def test_targets_are_augmented_and_not_noised() -> None:
    net = discriminator(64, diffaug="cutout,translation", c_parts={"time": T_DIM}).eval()
    img = torch.ones(8, 3, 64, 64)
    logits, made = net.reconstruct(img, generator=generator(0), d_noise=PixelDiffusion())
    target = made[0].target
    assert (target == 0).flatten(1).any(1).all()
    assert float(target.max()) == 1.0
    noisier = net.reconstruct(img, generator=generator(0), d_noise=PixelDiffusion(t_min=900))
    assert not torch.allclose(logits, noisier[0])
    torch.testing.assert_close(noisier[1][0].target, target)


def test_small_image_of_the_generator_replaces_the_shrunk_one() -> None:
    net = discriminator(64).eval()
    img, small = images(2, 64), images(2, 32).flip(2)
    shrunk, given = net(img), net(img, small=small)
    torch.testing.assert_close(net(img, small=shrink(img, (32, 32))), shrunk)
    torch.testing.assert_close(given[:, :25], shrunk[:, :25])
    assert not torch.allclose(given[:, 25:], shrunk[:, 25:])


def test_both_images_are_noised_with_times_of_their_own() -> None:
    class Recorder(DNoise):
        t_dim = 1

        def __init__(self) -> None:
            self.sizes: list[int] = []

        def image(self, img, generator):
            self.sizes.append(img.shape[2])
            return img, torch.full((len(img), 1), float(img.shape[2]))

    net = discriminator(64, c_parts={"time": 1}).eval()
    told: list[torch.Tensor] = []
    for logits in (net.logits_big, net.logits_small):
        logits.register_forward_pre_hook(lambda _, args: told.append(args[1]))
    noise = Recorder()
    net(images(2, 64), small=images(2, 32), d_noise=noise)
    net(images(2, 64), d_noise=noise)
    assert noise.sizes == [64, 32, 64, 32]
    assert [c.tolist() for c in told] == [[[64.0], [64.0]], [[32.0], [32.0]]] * 2


def test_generator_is_needed_for_randomness() -> None:
    with pytest.raises(ValueError, match="quarter"):
        discriminator().reconstruct(images(2, 32))
    with pytest.raises(ValueError, match="diffaug"):
        discriminator(diffaug="color")(images(2, 32))


# Discriminator: conditions

@pytest.mark.parametrize("parts", [{"label": 3}, {"instance": 5}, {"label": 3, "instance": 5}])
def test_c_changes_the_logits_of_both_branches(parts: dict[str, int]) -> None:
    net = discriminator(c_parts=parts).eval()
    img, width = images(2, 32), sum(parts.values())
    c = torch.eye(width)[:2]
    a, b = net(img, c=c), net(img, c=c.flip(0))
    for branch in (slice(0, 25), slice(25, 50)):
        assert not torch.allclose(a[:, branch], b[:, branch], rtol=1e-4, atol=1e-7)
    for wrong in (None, torch.zeros(2, width + 1)):
        with pytest.raises(ValueError, match="width"):
            net(img, c=wrong)
    # A label's projection is the whole logit; anything else comes beside a logit of its own.
    assert net.logits_big.cls.weight.shape[0] == (64 if parts == {"label": 3} else 65)


@pytest.mark.parametrize("size", [1, 4])
def test_h_interacts_with_the_image(size: int) -> None:
    net = discriminator(h_channels=2).eval()
    x, y = images(2, 32), images(2, 32).flip(3)
    h = torch.randn(2, 2, size, size, generator=generator("h"))
    gain = (net(x, h=h) - net(x, h=-h)) - (net(y, h=h) - net(y, h=-h))
    assert (gain[:, :25].abs().amax(1) > 1e-6).all()
    assert (gain[:, 25:].abs().amax(1) > 1e-6).all()
    with pytest.raises(ValueError, match="2 channels"):
        net(x)
    with pytest.raises(ValueError, match="0 channels"):
        discriminator()(x, h=h)


def test_freeze_counts_from_the_image() -> None:
    net = discriminator(64)  # a stem and three stages; two blocks in the small branch
    net.freeze(3)
    moving = {name.split(".")[0] + "." + name.split(".")[1] for name, p in net.named_parameters() if p.requires_grad}
    assert {name for name in moving if name.startswith(("stem", "stages", "small"))} == {"stages.8"}
    assert {name.split(".")[0] for name in moving} >= {"logits_big", "logits_small", *DECODERS}
    with pytest.raises(UserError, match="--freeze-d 5"):
        net.freeze(5)


# Objective

def test_perceptual_distance() -> None:
    a = images(3, 32)
    b = a + 0.3 * torch.randn(a.shape, generator=generator("noise"))
    distance = perceptual_distance(a, b)
    assert distance.shape == (3,)
    torch.testing.assert_close(perceptual_distance(a, a), torch.zeros(3))
    assert (perceptual_distance(a, a + (b - a) / 10) < distance).all()
    torch.testing.assert_close(perceptual_distance(b, a), distance)
    grey = a[:, :1]
    torch.testing.assert_close(perceptual_distance(grey, grey.flip(3)),
                               perceptual_distance(grey.expand(-1, 3, -1, -1), grey.flip(3).expand(-1, 3, -1, -1)))


def test_perceptual_distance_has_a_gradient_towards_the_target() -> None:
    target = images(2, 32).double()
    made = torch.zeros_like(target).requires_grad_()
    before = perceptual_distance(made, target).sum()
    grad, = torch.autograd.grad(before, made)
    assert perceptual_distance(-0.5 * grad / grad.norm(), target).sum() < before


@pytest.mark.parametrize("objective", list(ADVERSARIAL))
@pytest.mark.parametrize(("noisy", "c_dim"), [(False, 0), (True, 0), (False, 2)])
def test_gradients_reach_what_they_should(objective: str, noisy: bool, c_dim: int) -> None:
    loss, batch = set_up(PixelDiffusion() if noisy else None, c_dim, objective=objective)
    rng = generator("step")
    fakes, reals = loss.discriminator_terms(batch, rng)
    fakes.loss.backward()
    assert all(p.grad is None for name in DECODERS for p in getattr(loss.D, name).parameters())
    assert all(p.grad is None for p in loss.G.parameters())
    reals.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.D.parameters())
    assert all(p.grad.abs().sum() > 0 for name in DECODERS for p in getattr(loss.D, name).parameters())
    assert all(p.grad is None for p in loss.G.parameters())
    terms = loss.generator_terms(batch, rng)
    terms.loss.backward()
    assert all(p.grad is not None for p in loss.G.parameters())
    assert set(terms.log) == {"Loss/G/loss"}
    assert set(fakes.log) == {"Loss/D/fake", "Loss/scores/fake", "Loss/signs/fake"}
    assert set(reals.log) == {"Loss/D/real", "Loss/scores/real", "Loss/signs/real", "Loss/D/reconstruction"}


def test_hinge_with_random_margins(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, batch = set_up(reconstruction=2.0)
    spread = torch.linspace(-2, 2, 1001).repeat(4, 1)
    monkeypatch.setattr(loss, "_judge_pair", lambda *_: spread)
    monkeypatch.setattr(loss.D, "reconstruct", lambda img, **_: (spread, [(img[:, :, :16], img[:, :, 16:])] * 3))
    monkeypatch.setattr(fastgan_original, "perceptual_distance", lambda a, b: torch.arange(4.0))
    fakes, reals = loss.discriminator_terms(batch, generator("step"))
    # E relu(m + x) over margins m uniform in 0.8 … 1, and the same mirrored; the reconstruction's mean is 3 · 1.5.
    margins = 1 - 0.2 * torch.rand(200_000, generator=generator("margins")).double()
    logits = torch.rand(200_000, generator=generator("logits")).double() * 4 - 2
    expected = float((margins + logits).relu().mean())
    assert float(fakes.loss) == pytest.approx(expected, abs=0.02)
    assert float(reals.log["Loss/D/real"]) == pytest.approx(expected, abs=0.02)
    assert float(reals.log["Loss/D/reconstruction"]) == pytest.approx(4.5)
    assert float(reals.loss) == pytest.approx(float(reals.log["Loss/D/real"]) + 9, abs=1e-4)
    edge = torch.full((2, 10_000), -0.9)
    drawn = edge - loss._slack(edge, generator("edge"))
    assert float(drawn.min()) == pytest.approx(-1.1, abs=1e-3)
    assert float(drawn.max()) == pytest.approx(-0.9, abs=1e-3)


def test_steps_are_reproducible_and_depend_on_the_generator() -> None:
    loss, batch = set_up()
    loss.G.eval()
    loss.D.eval()
    runs = [[terms.loss.item() for terms in (loss.generator_terms(batch, rng), *loss.discriminator_terms(batch, rng))]
            for rng in (generator(1), generator(1), generator(2))]
    assert runs[0] == runs[1]
    assert all(a != b for a, b in zip(runs[0], runs[2], strict=True))


def test_adaptive_noise_observes_reals_and_float64_works(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = PixelDiffusion()
    loss, batch = set_up(noise)
    loss.G.double()
    loss.D.double()
    batch = Batch(batch.img.double(), batch.labels, batch.indices, batch.draws)
    monkeypatch.setattr(loss, "draw_z", lambda _, rng: torch.randn(4, 16, generator=rng, dtype=torch.float64))
    terms = [loss.generator_terms(batch, generator(1)), *loss.discriminator_terms(batch, generator(2))]
    assert noise.sign_count == 4 * 50
    assert all(term.loss.dtype == torch.float64 and bool(term.loss.isfinite()) for term in terms)


def test_bfloat16_agrees_roughly() -> None:
    values = []
    for amp in ("off", "bf16"):
        loss, batch = set_up(amp=amp)
        values.append([terms.loss.item() for terms in loss.discriminator_terms(batch, generator(1))])
    assert values[1] == pytest.approx(values[0], rel=0.05)
    assert values[1] != values[0]


def test_decoders_learn_to_reconstruct() -> None:
    loss, batch = set_up(reconstruction=1.0)
    optimizer = torch.optim.Adam(loss.D.parameters(), lr=5e-3, betas=(0.5, 0.999))
    distances = []
    for step in range(12):
        optimizer.zero_grad()
        terms = loss._real_terms(batch.img, loss.conditioning.condition(batch, loss.G, generator(0)), generator(step))
        terms.loss.backward()
        optimizer.step()
        distances.append(float(terms.log["Loss/D/reconstruction"]))
    assert sum(distances[-3:]) < 0.8 * sum(distances[:3])
