"""Samplers of latent diffusion against exact results: Gaussians and mixtures, whose noise estimate is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from ldm import ddim, denoiser, dpm, langevin, schedule
from ldm.ddim import add_noise
from ldm.names import SPACINGS
from torch_utils.rng import generator

LINEAR = schedule.alpha_bars()

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
COV = torch.tensor([[2.0, 0.8, 0.0], [0.8, 1.0, -0.3], [0.0, -0.3, 0.25]], dtype=torch.float64)


def mixture_eps(weights: list[float], means: torch.Tensor, covs: torch.Tensor,
                bars: torch.Tensor = LINEAR) -> ddim.EpsFn:
    """The exact noise estimate -sqrt(1 - a) grad log p_t for data from a Gaussian mixture in D dimensions."""
    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = bars[t[0]]
        spread = a * covs + (1 - a) * torch.eye(x.shape[1], dtype=x.dtype)
        off = x[:, None] - a.sqrt() * means  # [N, K, D]
        solved = torch.einsum("kij,nkj->nki", spread.inverse(), off)
        logs = torch.tensor(weights, dtype=x.dtype).log() - 0.5 * (spread.logdet() + (off * solved).sum(-1))
        return (1 - a).sqrt() * (logs.softmax(1)[..., None] * solved).sum(1)
    return eps


def noise_of(shape: tuple[int, ...], name: str) -> Callable[[int], torch.Tensor]:
    return lambda i: torch.randn(shape, dtype=torch.float64, generator=generator(name, i))


# A mixture of two Gaussians in the plane.
WEIGHTS = [0.3, 0.7]
MEANS = torch.tensor([[3.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
COVS = torch.stack([torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([0.2, 0.5], [0.5, 0.1])])


def assert_mixture(x: torch.Tensor) -> None:
    """Samples ``[6000, 2]`` have the mixture's mean, covariance and weights, within sampling error."""
    share = torch.tensor(WEIGHTS, dtype=torch.float64)[:, None]
    mean = (share * MEANS).sum(0)
    cov = (share[:, :, None] * COVS).sum(0) + (share * (MEANS - mean)).T @ (MEANS - mean)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.08)
    torch.testing.assert_close(torch.cov(x.T), cov, rtol=0, atol=0.15)
    assert (x[:, 0] > 1.2).double().mean().item() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_carries_noise_to_a_gaussian(spacing: str) -> None:
    """With the exact score the chain is affine; its images of 0 and of the unit vectors give mean and covariance."""
    start = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    end = ddim.sample(mixture_eps([1.0], MEAN[None], COV[None]), start, LINEAR, schedule.timesteps(500, 1000, spacing))
    torch.testing.assert_close(end[0], MEAN, rtol=0, atol=0.02)
    columns = (end[1:] - end[0]).T
    torch.testing.assert_close(columns @ columns.T, COV, rtol=0, atol=0.03)


@pytest.mark.parametrize(("eta", "steps"), [(0.0, 200), (0.5, 200), (1.0, 400)])
def test_samplers_reproduce_a_mixture(eta: float, steps: int) -> None:
    shape = (6000, 2)
    x = ddim.sample(mixture_eps(WEIGHTS, MEANS, COVS), noise_of(shape, "start")(0), LINEAR, schedule.timesteps(steps),
                    eta, noise_of(shape, "step"))
    assert_mixture(x)


@pytest.mark.parametrize("t", [1, 2, 500, 999])
def test_eta_one_is_the_ddpm_posterior(t: int) -> None:
    """Mean and variance of q(x_{t-1} | x_t, x_0), Ho et al. eq. 6-7."""
    a_t, a_s = LINEAR[t].item(), LINEAR[t - 1].item()
    beta = 1 - a_t / a_s
    sigma = ddim.step_sigma(a_t, a_s, 1.0)
    assert sigma**2 == pytest.approx(beta * (1 - a_s) / (1 - a_t), rel=1e-9)
    x_0, eps = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator("posterior"))
    x_t = ddim.add_noise(x_0, eps, a_t)
    mean = a_s**0.5 * beta / (1 - a_t) * x_0 + (1 - beta) ** 0.5 * (1 - a_s) / (1 - a_t) * x_t
    torch.testing.assert_close(ddim.step(x_t, eps, a_t, a_s, sigma, torch.zeros_like(x_t)), mean)
    torch.testing.assert_close(ddim.predict_clean(x_t, eps, a_t), x_0)


def ddpm(eps_fn: ddim.EpsFn, x: torch.Tensor, noise: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Ancestral sampling as Ho et al. 2020 write it (algorithm 2), with the posterior's variance."""
    betas = 1 - LINEAR / torch.cat([torch.ones(1, dtype=torch.float64), LINEAR[:-1]])
    for i, t in enumerate(reversed(range(1000))):
        eps = eps_fn(x, torch.full((len(x),), t))
        x = (x - betas[t] / (1 - LINEAR[t]).sqrt() * eps) / (1 - betas[t]).sqrt()
        if t > 0:
            x = x + (betas[t] * (1 - LINEAR[t - 1]) / (1 - LINEAR[t])).sqrt() * noise(i)
    return x


def test_eta_one_with_all_steps_is_ancestral_sampling() -> None:
    eps, noise = mixture_eps(WEIGHTS, MEANS, COVS), noise_of((20, 2), "step")
    start = noise_of((20, 2), "start")(0)
    chain = ddim.sample(eps, start, LINEAR, schedule.timesteps(1000), 1.0, noise)
    torch.testing.assert_close(chain, ddpm(eps, start, noise), rtol=0, atol=1e-9)


def test_encoding_is_undone_by_sampling() -> None:
    """The way back differs by the error of the steps, which falls as they get more."""
    eps = mixture_eps([1.0], MEAN[None], COV[None])
    x = MEAN + noise_of((50, 3), "data")(0) @ torch.linalg.cholesky(COV).T
    errors = []
    for count in (20, 100, 1000):
        steps = schedule.timesteps(count)
        code = ddim.encode(eps, x, LINEAR, steps)
        errors.append((ddim.sample(eps, code, LINEAR, steps) - x).abs().max().item())
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 0.02
    torch.testing.assert_close(code.std(), torch.tensor(1.0).double(), rtol=0, atol=0.15)  # a code is normal noise


@pytest.mark.parametrize(("kind", "spacing"), [("linear", "quadratic"), ("cosine", "uniform")])
@pytest.mark.parametrize("steps", [10, 20])
def test_second_order_is_nearer_than_first(kind: str, spacing: str, steps: int) -> None:
    """Against the exact solution, by 1000 steps; both start from the same noise and call the model as often."""
    bars = schedule.alpha_bars(kind)
    eps = mixture_eps(WEIGHTS, MEANS, COVS, bars)
    start = noise_of((400, 2), "start")(0)
    exact = dpm.sample(eps, start, bars, schedule.timesteps(1000))
    few = schedule.timesteps(steps, 1000, spacing)

    def error(x: torch.Tensor) -> float:
        return (x - exact).square().mean().sqrt().item()

    second = error(dpm.sample(eps, start, bars, few))
    assert second < 0.9 * error(ddim.sample(eps, start, bars, schedule.timesteps(steps)))
    assert second < 0.8 * error(ddim.sample(eps, start, bars, few))
    if steps == 20:
        assert second < 0.08


def test_second_order_reproduces_a_mixture() -> None:
    assert_mixture(dpm.sample(mixture_eps(WEIGHTS, MEANS, COVS), noise_of((6000, 2), "start")(0), LINEAR,
                              schedule.timesteps(20, 1000, "quadratic")))


def test_corrector_holds_the_distribution_of_its_level() -> None:
    """Langevin steps alone bring a wrong Gaussian to the one of the noise level, up to their own error of snr^2."""
    t = 300
    a = float(LINEAR[t])
    eps, noise = mixture_eps([1.0], MEAN[None], COV[None]), noise_of((8000, 3), "langevin")
    x = 3 * noise(1000)
    for i in range(150):
        x = langevin.correct(x, ddim.at_time(eps, x, t), noise(i), a, 0.3)
    torch.testing.assert_close(x.mean(0), math.sqrt(a) * MEAN, rtol=0, atol=0.05)
    wanted = a * COV + (1 - a) * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(torch.cov(x.T), wanted, rtol=0, atol=0.09 * wanted.max().item() + 0.05)


def test_corrector_mends_a_wrong_start() -> None:
    """Deterministic DDIM carries an offset of the noise to the end; Langevin steps on the way forget it."""
    eps, shape, steps = mixture_eps([1.0], MEAN[None], COV[None]), (3000, 3), schedule.timesteps(40)
    start = noise_of(shape, "start")(0) + 1.5
    plain = ddim.sample(eps, start, LINEAR, steps)
    mended = langevin.sample(eps, start, LINEAR, steps, noise_of(shape, "langevin"), corrections=2, snr=0.3)
    assert (plain.mean(0) - MEAN).norm() > 1
    assert (mended.mean(0) - MEAN).norm() < 0.15


def test_predictor_corrector_reproduces_a_mixture() -> None:
    x = langevin.sample(mixture_eps(WEIGHTS, MEANS, COVS), noise_of((6000, 2), "start")(0), LINEAR,
                        schedule.timesteps(100), noise_of((6000, 2), "langevin"))
    assert_mixture(x)


@pytest.mark.parametrize("name", ["ddim", "dpm", "langevin"])
def test_a_chain_that_ends_early_has_the_distribution_of_its_end(name: str) -> None:
    """The state at alpha-bar `end`, which is none of the schedule's: mean and covariance of the noisy Gaussian."""
    end, count, shape = 0.77, 300, (8000, 3)
    steps = [t for t in schedule.timesteps(count) if float(LINEAR[t]) < end]
    eps, start = mixture_eps([1.0], MEAN[None], COV[None]), noise_of(shape, "start")(0)
    x = {"ddim": lambda: ddim.sample(eps, start, LINEAR, steps, end=end),
         "dpm": lambda: dpm.sample(eps, start, LINEAR, steps, end),
         "langevin": lambda: langevin.sample(eps, start, LINEAR, steps, noise_of(shape, "langevin"), end=end)}[name]()
    torch.testing.assert_close(x.mean(0), math.sqrt(end) * MEAN, rtol=0, atol=0.05)
    wanted = end * COV + (1 - end) * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(torch.cov(x.T), wanted, rtol=0, atol=0.08)


# Schedule and parametrisation.


def test_cosine_schedule() -> None:
    """Nichol and Dhariwal: cos^2 between its ends, near-linear in the middle, more steps at middling noise."""
    bars = schedule.alpha_bars("cosine")
    middle = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert bars[499].item() == pytest.approx(middle, rel=1e-9)
    betas = 1 - bars[1:] / bars[:-1]
    assert betas.max().item() == pytest.approx(0.999, abs=1e-9)
    assert betas.min() > 0
    falls = -(bars[300:700].diff())
    assert float(falls.max() / falls.min()) < 1.3

    def share(of: torch.Tensor) -> float:
        return ((of > 0.1) & (of < 0.9)).double().mean().item()

    assert share(bars) > 1.2 * share(LINEAR)


class Table(torch.nn.Module):
    """A network that gives a fixed output."""

    def __init__(self, out: torch.Tensor) -> None:
        super().__init__()
        self.out = torch.nn.Parameter(out)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return self.out


def test_v_is_epsilon_in_other_words() -> None:
    x_0, eps, wrong = torch.randn(3, 5, 2, 1, 1, dtype=torch.float64, generator=generator("v"))
    t = torch.tensor([0, 50, 400, 800, 999])
    a = LINEAR[t].reshape(-1, 1, 1, 1)
    x_t, v = add_noise(x_0, eps, LINEAR[t]), a.sqrt() * eps - (1 - a).sqrt() * x_0

    def estimator(kind: str, out: torch.Tensor) -> denoiser.NoiseEstimator:
        net = denoiser.NoiseEstimator(Table(out), LINEAR, kind)
        net.signal, net.noise = LINEAR.sqrt(), (1 - LINEAR).sqrt()  # float64
        return net

    # A network that gives v gives eps, and has no loss; so does one that gives eps itself.
    for kind, out in (("v", v), ("gaussian", v), ("epsilon", eps)):
        net = estimator(kind, out)
        torch.testing.assert_close(net(x_t, t), eps, rtol=0, atol=1e-12)
        assert net.loss(x_t, x_0, eps, t).item() < 1e-20
    # The loss on v is that on eps over a_t; "gaussian" keeps the loss on eps.
    for i in range(5):
        row = slice(i, i + 1)
        losses = {kind: estimator(kind, (v + wrong)[row]).loss(x_t[row], x_0[row], eps[row], t[row]).item()
                  for kind in ("v", "gaussian")}
        assert losses["gaussian"] == pytest.approx(float(a[i]) * losses["v"], rel=1e-9)
        assert losses["v"] == pytest.approx(wrong[i].square().mean().item(), rel=1e-9)


def test_sampler_refuses_what_it_cannot_do() -> None:
    x, eps = torch.zeros(1, 2), mixture_eps([1.0], MEAN[None, :2], COV[None, :2, :2])
    for end in (float(LINEAR[3]), 1.5):
        with pytest.raises(ValueError, match="the end"):
            dpm.sample(eps, x, LINEAR, [5, 3], end)
    for steps, eta in (([], 0.0), ([3, 5], 0.0), ([5, 3], 1.5), ([5, 3], 1.0)):
        with pytest.raises(ValueError, match=r"times|eta"):
            ddim.sample(eps, x, LINEAR, steps, eta)
