"""Eq. 1–6 of DIC-GAN: properties of h, of the posterior, and of the modulation; encoders stay whitened."""

from __future__ import annotations

import math

import pytest
import torch

from dnnlib import UserError
from pg_modules.encoder import ConstantEncoder, FrozenEncoder, HeadEncoder, JointEncoder
from pg_modules.modulation import Modulation
from pg_modules.whitening import Whitening, rms_normalize
from training.diagnostics import collapse_warning, effective_rank, mean_cosine
from training.diffused_instance import (
    check_sigma,
    diffuse,
    posterior_log_prob,
    posterior_perplexity,
    sigma_for_perplexity,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(count: int = 200, dims: int = 16) -> torch.Tensor:
    return rms_normalize(torch.randn(count, dims, 1, 1, generator=rng()))


def test_diffuse_has_the_moments_of_eq_1() -> None:
    f = torch.full((20000, 3, 1, 1), 2.0)
    h = diffuse(f, 0.6, torch.randn(f.shape, generator=rng()))
    assert h.mean().item() == pytest.approx(0.8 * 2, abs=0.01)
    assert h.std().item() == pytest.approx(0.6, abs=0.01)


def test_sigma_zero_is_the_identity_exactly() -> None:
    f = latents()
    eps = torch.randn(f.shape, generator=rng())
    h = diffuse(f, 0.0, eps)
    assert torch.equal(h, f)
    modulation = Modulation(8, 16)
    torch.nn.init.normal_(modulation.leave.weight)
    assert torch.equal(modulation(h, torch.randn(200, 8), 0.0), h)


def test_modulation_is_eq_6() -> None:
    modulation = Modulation(8, 16)
    h, z = latents(), torch.randn(200, 8, generator=rng())
    torch.testing.assert_close(modulation(h, z, 0.6), h / 0.8)  # G_mod starts at zero
    torch.nn.init.normal_(modulation.leave.weight)
    noise = h - modulation(h, z, 0.6) * 0.8  # = sigma G_mod(h, z)
    assert noise.abs().mean() > 0.01
    torch.testing.assert_close(h - modulation(h, z, 0.8) * 0.6, noise * 0.8 / 0.6, rtol=1e-4, atol=1e-5)
    per_sample = modulation(h, z, torch.full((200,), 0.6))
    torch.testing.assert_close(per_sample, modulation(h, z, 0.6))


@pytest.mark.parametrize("sigma", [-0.1, 1.0, 1.5, float("nan")])
def test_sigma_outside_is_refused(sigma: float) -> None:
    with pytest.raises(UserError, match="--sigma"):
        check_sigma(sigma)


def test_posterior_equals_bayes_on_plain_densities() -> None:
    """Against Eq. 4 written out with exponentials, where those don't underflow."""
    f = latents(6, 2)
    sigma = 0.7
    h = diffuse(f, sigma, torch.randn(f.shape, generator=rng()))
    density = torch.stack([
        torch.stack([torch.exp(-((a - math.sqrt(1 - sigma**2) * b) ** 2).sum() / (2 * sigma**2)) for b in f]) for a in h
    ]).double()
    torch.testing.assert_close(posterior_log_prob(h, f, sigma).exp(), density / density.sum(1, keepdim=True),
                               rtol=1e-5, atol=1e-8)


def test_posterior_survives_large_latents() -> None:
    f = rms_normalize(torch.randn(50, 64, 8, 8, generator=rng()))
    log_prob = posterior_log_prob(diffuse(f, 0.3, torch.randn(f.shape, generator=rng(1))), f, 0.3)
    assert torch.isfinite(log_prob).all()
    assert (log_prob.argmax(1) == torch.arange(50)).all()


def test_perplexity_limits() -> None:
    f = latents()
    assert posterior_perplexity(f, 0.0, rng()) == 1.0
    assert posterior_perplexity(f, 0.1, rng()) == pytest.approx(1.0, abs=1e-3)
    assert posterior_perplexity(f, 0.999, rng()) > 150
    assert posterior_perplexity(torch.ones(50, 4, 1, 1), 0.5, rng()) == pytest.approx(50)


@pytest.mark.parametrize("target", [2.0, 5.0, 20.0])
def test_sigma_auto_reaches_the_perplexity(target: float) -> None:
    f = latents()
    sigma = sigma_for_perplexity(f, target, seed=3)
    assert posterior_perplexity(f, sigma, rng(3)) == pytest.approx(target, rel=0.05)
    with pytest.raises(UserError, match="auto"):
        sigma_for_perplexity(f, 1e6, seed=3)


def test_diagnostics_name_a_collapse() -> None:
    healthy, constant = latents(), torch.ones(100, 16, 1, 1)
    one_direction = rms_normalize(torch.randn(100, 1, 1, 1, generator=rng()) * constant[:, :1] + 5 * constant)
    assert abs(mean_cosine(healthy)) < 0.02
    assert mean_cosine(constant) == pytest.approx(1)
    assert effective_rank(healthy) > 14
    assert effective_rank(constant) == 0
    for f, collapsed in ((healthy, False), (constant, True), (one_direction, True)):
        values = {"Latent/mean_cosine": mean_cosine(f), "Latent/effective_rank": effective_rank(f)}
        warning = collapse_warning(values, "pg_modules.encoder.JointEncoder")
        assert (warning is not None) == collapsed
        assert collapse_warning(values, "pg_modules.encoder.ConstantEncoder") is None


def pictures(count: int = 64) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=rng()) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")


@pytest.mark.parametrize("kind", [FrozenEncoder, HeadEncoder, JointEncoder])
def test_encoders_are_whitened_after_fitting(kind: type) -> None:
    encoder = kind((8, 1, 1), 32) if kind is JointEncoder else kind((8, 1, 1), 32, input_size=64)
    images = pictures()
    encoder.eval().fit([images[:32], images[32:]])
    with torch.no_grad():
        f = encoder(images)
    assert f.shape == (64, 8, 1, 1)
    torch.testing.assert_close(f.square().mean((1, 2, 3)), torch.ones(64))
    assert abs(mean_cosine(f)) < 0.1
    assert effective_rank(f) > 6


def test_frozen_network_stays_out_of_the_state() -> None:
    encoder = HeadEncoder((8, 1, 1), 32, input_size=64)
    assert all(not name.startswith("_backbone") for name in encoder.state_dict())
    assert {name.split(".")[0] for name, p in encoder.named_parameters() if p.requires_grad} == {"correction"}
    assert not list(FrozenEncoder((8, 1, 1), 32).parameters())


def test_whitening_follows_only_passes_with_gradients() -> None:
    layer = Whitening(4, momentum=0.5).train()
    x = torch.randn(256, 4, 1, 1, generator=rng()) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None] + 5
    with torch.no_grad():
        layer(x)
    assert torch.equal(layer.mean, torch.zeros(4))
    for _ in range(20):
        y = layer(x)
    covariance = torch.cov(y.flatten(1).T)
    torch.testing.assert_close(covariance, torch.eye(4), atol=0.05, rtol=0)


def test_joint_encoder_gives_maps_and_gradients() -> None:
    encoder = JointEncoder((4, 8, 8), 32)
    encoder.fit([pictures(16)])
    f = encoder(pictures(16))
    assert f.shape == (16, 4, 8, 8)
    f.square().sum().backward()
    assert encoder.layers[0].weight.grad is not None
    with pytest.raises(UserError, match="--latent"):
        JointEncoder((4, 6, 6), 32)
    with pytest.raises(UserError, match="side of 4"):
        FrozenEncoder((4, 8, 8), 32)


def test_too_few_images_to_whiten() -> None:
    encoder = FrozenEncoder((64, 1, 1), 32, input_size=32)
    with pytest.raises(UserError, match="--latent 64"):
        encoder.fit([pictures(10)])


def test_constant_encoder_ignores_the_image() -> None:
    encoder = ConstantEncoder((4, 1, 1))
    assert torch.equal(encoder(pictures(2))[0], encoder(pictures(3))[2])


@pytest.mark.parametrize("kind", [FrozenEncoder, HeadEncoder])
def test_frozen_features_on_a_grid_are_whitened_by_channel(kind: type) -> None:
    encoder = kind((6, 2, 2), 64, input_size=64)
    images = torch.nn.functional.interpolate(pictures(), size=64, mode="bilinear")
    encoder.eval().fit([images[:24], images[24:]])
    with torch.no_grad():
        raw = encoder.components(images).movedim(1, -1).flatten(0, -2)
        f = encoder(images)
    torch.testing.assert_close(torch.cov(raw.T), torch.eye(6), atol=2e-3, rtol=0)
    assert f.shape == (64, 6, 2, 2)
    assert f.flatten(2).std(2).min() > 0  # cells of an image differ
    torch.testing.assert_close(f.square().mean((1, 2, 3)), torch.ones(64))


def test_more_dimensions_than_features_are_refused() -> None:
    with pytest.raises(UserError, match="1280 features only"):
        FrozenEncoder((1281, 1, 1), 64)
