"""Noise in front of D: what is added, how often, how the chain's length adapts, and that resuming changes nothing."""

from __future__ import annotations

import json
import math

import pytest
import torch

from dnnlib import UserError
from torch_utils.rng import generator
from training.d_noise.base import DNoise
from training.d_noise.diffusion import POOL, AdaptiveDiffusion, diffuse, draw_pool, signal_levels, time_weights
from training.d_noise.feature import FeatureDiffusion
from training.d_noise.pixel import PixelDiffusion, embed_times

KINDS = (FeatureDiffusion, PixelDiffusion)


def observed(noise: AdaptiveDiffusion, logits: torch.Tensor, iterations: int, batch: int = 1000) -> list[float]:
    """p after each iteration in which D says `logits` of reals."""
    values = []
    for _ in range(iterations):
        noise.observe(logits)
        values.append(noise.after_step(batch)["DNoise/p"])
    return values


def noised(noise: DNoise, x: torch.Tensor, rng: torch.Generator) -> list[torch.Tensor]:
    """x through all three places, as D does."""
    img, time = noise.image(x, rng)
    return [img, *noise.last(noise.first([x, x[:, :, ::2]], rng), rng), *([] if time is None else [time])]


# Schedule and pool

def test_levels_are_the_product_of_linear_betas() -> None:
    levels = signal_levels(4, 0.1, 0.4)
    torch.testing.assert_close(levels, torch.tensor([1, 0.9, 0.72, 0.504, 0.3024]).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("kind", "expected"), [(FeatureDiffusion, 0.079), (PixelDiffusion, 4e-5)])
def test_signal_left_at_full_length(kind, expected: float) -> None:
    noise = kind()
    noise.p = 1.0
    noise.load_state_dict(noise.state_dict())
    assert noise.length == noise.t_max
    assert float(noise.levels[-1]) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("distribution", ["priority", "uniform"])
def test_frequencies_of_times(distribution: str) -> None:
    rng = generator("times")
    drawn = torch.cat([draw_pool(5, distribution, POOL, rng) for _ in range(500)])
    share = torch.bincount(drawn, minlength=6).double() / len(drawn)
    expected = torch.tensor([0, 1, 2, 3, 4]).double() / 10 if distribution == "priority" else torch.full((5,), 0.2)
    torch.testing.assert_close(time_weights(5, distribution), expected.double())
    torch.testing.assert_close(share[1:], expected.double(), rtol=0, atol=0.01)
    assert share[0] == 0
    assert distribution == "uniform" or share[1] == 0


@pytest.mark.parametrize(("p", "share"), [(0.0, 0), (0.25, 16), (0.5, 32), (1.0, 48)])
def test_share_of_diffused_channels_grows_to_three_quarters(p: float, share: int) -> None:
    noise = FeatureDiffusion()
    noise.load_state_dict({**noise.state_dict(), "p": p})
    assert int((noise.pool > 0).sum()) == share
    assert int((PixelDiffusion().pool > 0).sum()) == 32


# What is added

def test_time_zero_is_the_identity() -> None:
    x = torch.randn(3, 4, 5, 6, generator=generator("x"))
    levels = signal_levels(20, 1e-2, 0.5)
    torch.testing.assert_close(diffuse(x, torch.zeros(3, dtype=torch.int64), levels, 0.5, generator("eps")), x,
                               rtol=0, atol=0)
    t = torch.zeros(3, 4, dtype=torch.int64)
    t[1, 2] = 20
    changed = (diffuse(x, t, levels, 0.5, generator("eps")) != x).flatten(2).any(2)
    assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("t", [3, 20])
def test_marginal_mean_and_variance(t: int) -> None:
    levels = signal_levels(20, 1e-2, 0.2)
    x = torch.full((2, 1, 300, 300), 2.0, dtype=torch.float64)
    out = diffuse(x, torch.full((2,), t), levels, 0.5, generator("eps"))
    assert out.dtype == torch.float64
    assert float(out.mean()) == pytest.approx(2 * math.sqrt(levels[t]), abs=0.01)
    assert float(out.var()) == pytest.approx(0.25 * (1 - float(levels[t])), rel=0.02)


def test_gradient_is_scaled_by_the_signal() -> None:
    levels = signal_levels(10, 1e-2, 0.2)
    x = torch.randn(2, 3, 4, 4, generator=generator("x")).double().requires_grad_()
    out = diffuse(x, torch.tensor([0, 7]), levels, 1.0, generator("eps"))
    grad, = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad[0], torch.ones_like(grad[0]))
    torch.testing.assert_close(grad[1], torch.full_like(grad[1], math.sqrt(levels[7])))


def test_noise_differs_between_samples_channels_and_maps() -> None:
    noise = FeatureDiffusion(position="first", noise_std=1.0)
    noise.load_state_dict({**noise.state_dict(), "p": 1.0})
    a, b = noise.first([torch.zeros(2, 200, 4, 4)] * 2, generator("draw"))
    rows = torch.cat([a, b]).flatten(0, 1).flatten(1)
    rows = rows[rows.any(1)]
    assert 500 < len(rows) < 700  # 48 of 64
    assert len(rows.unique(dim=0)) == len(rows)
    images, _ = PixelDiffusion(noise_std=1.0).image(torch.zeros(64, 3, 4, 4), generator("draw"))
    rows = images.flatten(1)
    rows = rows[rows.any(1)]
    assert 16 < len(rows) < 48
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize("position", ["first", "last"])
def test_features_are_diffused_at_one_place_only(position: str) -> None:
    noise = FeatureDiffusion(position=position)
    maps = [torch.ones(4, 8, 6, 6), torch.ones(4, 16, 3, 3)]
    assert noise.first(maps, None) is maps
    assert noise.last(maps, None) is maps  # p = 0: nothing is added, nothing drawn
    noise.load_state_dict({**noise.state_dict(), "p": 1.0})
    other = "last" if position == "first" else "first"
    assert getattr(noise, other)(maps, None) is maps
    out = getattr(noise, position)(maps, generator("draw"))
    assert [x.shape for x in out] == [x.shape for x in maps]
    assert all((x != 1).any() for x in out)
    assert noise.image(maps[0], None) == (maps[0], None)
    assert noise.t_dim == 0


def test_pixel_diffusion_tells_the_time_that_it_used() -> None:
    noise = PixelDiffusion(noise_std=0.0)
    noise.load_state_dict({**noise.state_dict(), "p": 0.5})
    img = torch.ones(64, 3, 4, 4, dtype=torch.float64)
    out, time = noise.image(img, generator("draw"))
    assert time is not None
    assert time.shape == (64, noise.t_dim)
    assert time.dtype == torch.float64
    candidates = embed_times(torch.arange(noise.length + 1)).double()
    t = (time @ candidates.T).argmax(1)
    torch.testing.assert_close(time, candidates[t])
    torch.testing.assert_close(out[:, 0, 0, 0], noise.levels[t].sqrt())


def test_embedded_times_are_told_apart() -> None:
    rows = embed_times(torch.arange(1001)).double()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(1001).double(), rtol=0, atol=1e-6)
    distances = torch.cdist(rows, rows) + torch.eye(1001).double()
    assert float(distances.min()) > 0.05


def test_no_noise_changes_nothing() -> None:
    noise, x = DNoise(), torch.randn(2, 3, 4, 4)
    out = noised(noise, x, generator("draw"))
    assert len(out) == 3
    assert out[0] is x
    torch.testing.assert_close(out[2], x[:, :, ::2])
    noise.observe(x.flatten(1))
    assert noise.after_step(4) == {}
    noise.load_state_dict(noise.state_dict())


# Adaptation

@pytest.mark.parametrize("kind", KINDS)
def test_length_follows_the_sign_of_d_on_reals(kind) -> None:
    noise = kind(ada_kimg=40)
    rising = observed(noise, torch.full((4, 9), 2.0), 12)
    assert rising == pytest.approx([0, 0, 0, 0.1, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3])
    assert noise.length == noise.t_min + round(noise.p * (noise.t_max - noise.t_min))
    assert len(noise.levels) == noise.length + 1
    assert observed(noise, torch.full((4, 9), 2.0), 36)[-1] == 1.0
    assert noise.length == noise.t_max
    assert observed(noise, torch.full((4, 9), -2.0), 4)[-1] == pytest.approx(0.9)
    assert observed(noise, torch.full((4, 9), -2.0), 60)[-1] == 0.0
    assert noise.length == noise.t_min


def test_adaptation_compares_the_mean_sign_with_the_target() -> None:
    def after(target: float) -> float:
        noise = FeatureDiffusion(target=target, ada_kimg=40)
        noise.load_state_dict({**noise.state_dict(), "p": 0.5})
        # Eight logits over two micro-batches, six of them positive: a mean sign of 0.5 whatever their sizes.
        noise.observe(torch.tensor([[100.0, 0.1, 1.0, -0.1]]))
        noise.observe(torch.tensor([[0.1, 0.1, -100.0, 5.0]]))
        return [noise.after_step(1000)["DNoise/p"] for _ in range(4)][-1]

    assert [after(0.4), after(0.5), after(0.6)] == pytest.approx([0.6, 0.5, 0.4])


def test_no_adaptation_without_observations() -> None:
    noise = PixelDiffusion()
    assert [noise.after_step(64) for _ in range(4)] == [{"DNoise/p": 0.0, "DNoise/T": 10.0}] * 4


def test_pool_is_drawn_anew_at_every_adaptation() -> None:
    noise = PixelDiffusion(t_min=500, ada_kimg=1e9)
    before = noise.pool
    observed(noise, torch.ones(2, 2), 4)
    assert not torch.equal(noise.pool, before)
    assert not torch.equal(PixelDiffusion(t_min=500, seed=1).pool, before)
    torch.testing.assert_close(PixelDiffusion(t_min=500).pool, before)


# State

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("iterations", [6, 8])
def test_resuming_is_bit_for_bit(kind, iterations: int) -> None:
    signal = [torch.randn(4, 5, generator=generator("signal", i)) + 2 for i in range(16)]
    x = torch.randn(4, 8, 6, 6, generator=generator("x"))

    def go_on(noise: AdaptiveDiffusion, first: int) -> list[torch.Tensor]:
        out = []
        for i in range(first, 16):
            out += noised(noise, x, generator("iteration", i))
            noise.observe(signal[i][:2])
            noise.observe(signal[i][2:])
            out.append(torch.tensor(list(noise.after_step(500).values())))
        return out

    noise = kind(ada_kimg=10, seed=3)
    for i in range(iterations):
        noise.observe(signal[i])
        noise.after_step(500)
    resumed = kind(ada_kimg=10, seed=3)
    resumed.load_state_dict(json.loads(json.dumps(noise.state_dict())))
    expected, again = go_on(noise, iterations), go_on(resumed, iterations)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    assert noise.state_dict() == resumed.state_dict()
    assert noise.p > 0


# Bad options

@pytest.mark.parametrize(("options", "flag"), [
    ({"target": 1.5}, "--d-noise-target 1.5"), ({"target": -0.1}, "--d-noise-target"),
    ({"position": "middle"}, "--d-noise-at middle"), ({"t_distribution": "normal"}, "--t-dist normal"),
])
def test_users_are_told_which_flag_is_wrong(options: dict, flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        FeatureDiffusion(**options)


@pytest.mark.parametrize("options", [{"t_min": 1}, {"t_min": 9, "t_max": 8}, {"beta_start": 0.0}, {"beta_end": 1.0},
                                     {"beta_start": 0.5, "beta_end": 0.4}, {"noise_std": -1.0}, {"ada_kimg": 0}])
@pytest.mark.parametrize("kind", KINDS)
def test_impossible_schedules_are_refused(kind, options: dict) -> None:
    with pytest.raises(ValueError, match=r"need|must"):
        kind(**options)


def test_drawing_needs_a_generator() -> None:
    with pytest.raises(ValueError, match=r"torch\.Generator"):
        PixelDiffusion().image(torch.zeros(2, 3, 4, 4), None)
    noise = FeatureDiffusion()
    noise.load_state_dict({**noise.state_dict(), "p": 1.0})
    with pytest.raises(ValueError, match=r"torch\.Generator"):
        noise.first([torch.zeros(2, 3, 4, 4)], None)
