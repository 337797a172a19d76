"""Latent diffusion over every space and with classes: f of each method, w and styles of StyleGAN2, h by early ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from runs import CPU, open_set, tiny_config
from test_ldm import small_config, two_moons

import gen_images
from dnnlib import UserError
from ldm import denoiser
from ldm.batches import LatentData
from ldm.latents import open_latents
from ldm.presets import resolve
from ldm.prior import Prior, load_prior
from ldm.sample import main as sample_main
from ldm.settings import Sampling
from ldm.train import main as train_main
from ldm.trainer import Trainer
from torch_utils import checkpoint
from torch_utils.rng import generator, sample_normal
from training.preparation import prepare
from training.run_state import RunState
from training.sampling import Sampler, load_gan
from training.source_options import SourceFlags
from training.sources import open_sampler
from training.spaces import decoder, draw_latents, styles_of

# The cheapest network of each kind that has latents.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dicgan": ("dicgan_demo", {}),
    "icgan": ("icgan_demo", {"cond": True, "neighbors": 3}),
    "stylegan2": ("stylegan2_demo", {}),
    "stylegan2cond": ("stylegan2_demo", {"cond": True}),
}


@pytest.fixture(scope="module")
def networks(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    for name, (cfg, changes) in KINDS.items():
        torch.manual_seed(0)
        dataset = open_set(tiny_set, cfg, mirror=True, **changes)
        run = RunState(tiny_config(cfg, dataset, mirror=True, **changes), CPU)
        prepare(run, dataset, folder, fit=True, resumed=False)
        run.save(folder / f"{name}.pkl")
    return {name: folder / f"{name}.pkl" for name in KINDS}


SMALL = ["--kimg", "0.2", "--tick", "0.1", "--batch", "32", "--device", "cpu", "--pictures", "2"]


def train(network: Path, outdir: Path, *args: str) -> Path:
    """The best weights of a very short run of ldm/train.py."""
    done = CliRunner().invoke(train_main, ["--network", str(network), "--outdir", str(outdir), *SMALL, *args])
    assert done.exit_code == 0, (done.output, done.exception)
    (path,) = outdir.glob("*/best_model.pkl")
    return path


def sampler_of(network: Path, ldm: Path, labels: list[int] | None = None, **flags: Any) -> Sampler:
    return open_sampler(load_gan(network, CPU), SourceFlags(ldm=str(ldm), **flags), open_latents=open_latents,
                        images=lambda flag: pytest.fail("not needed"), labels=labels)


# w and style space.


def test_styles_and_w_make_the_images_of_z(networks: dict[str, Path]) -> None:
    gan = load_gan(networks["stylegan2"], CPU)
    G, z = gan.G, torch.randn(3, gan.G.z_dim, generator=generator("z"))
    w = G.mapping(z, None)
    images = G(z, noise="const")
    torch.testing.assert_close(decoder(gan, "w")(w[:, :, None, None], "const"), images)
    s = styles_of(G, w)[:, :, None, None]
    torch.testing.assert_close(decoder(gan, "s")(s, "const"), images)
    torch.testing.assert_close(G(z, noise="const"), images)  # nothing is left behind in G
    assert (decoder(gan, "s")(s + 0.5, "const") - images).abs().max() > 0.01
    # Every style matters, and has a gradient.
    s.requires_grad_()
    decoder(gan, "s")(s, "const").square().sum().backward()
    assert s.grad is not None
    assert (s.grad.abs().sum(0) > 0).double().mean() > 0.95


def test_mapping_samples(networks: dict[str, Path]) -> None:
    gan = load_gan(networks["stylegan2cond"], CPU)
    latents, classes = draw_latents(gan, "w", [0, 0, 1], 300, 7, batch_size=128)
    assert latents.shape == (300, gan.G.w_dim, 1, 1)
    assert classes is not None
    assert classes.double().mean().item() == pytest.approx(1 / 3, abs=0.1)
    again, _ = draw_latents(gan, "w", [0, 0, 1], 300, 7, batch_size=128)
    assert torch.equal(latents, again)
    centres = [latents[classes == k].mean(0) for k in (0, 1)]
    assert (centres[0] - centres[1]).abs().max() > 0.1


@pytest.mark.parametrize("space", ["w", "s"])
def test_from_mapping_network_to_images(space: str, networks: dict[str, Path], tmp_path: Path) -> None:
    network = networks["stylegan2"]
    ldm = train(network, tmp_path / "ldm", "--space", space, "--samples", "200")
    assert ldm.parent.name == f"00000-ldm-tiny-{space}-mlp"
    assert len(list(ldm.parent.glob("samples*.png"))) == 1
    args = ["--network", str(network), "--ldm", str(ldm), "--seeds", "0-3", "--outdir", str(tmp_path / "o")]
    done = CliRunner().invoke(gen_images.main, [*args, "--ldm-sampler", "dpm2m", "--ldm-steps", "5"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "(ldm)" in done.output
    assert len(list((tmp_path / "o").iterdir())) == 4
    sampler = sampler_of(network, ldm, ldm_steps=4)
    assert sampler.provenance["ldm_space"] == space
    assert (sampler.batch([0, 1]).int()[1] - sampler.batch([1]).int()[0]).abs().max() <= 1
    with pytest.raises(UserError, match=r"--trunc 0.5 .*mapping network"):
        sampler_of(network, ldm, trunc=0.5)
    with pytest.raises(UserError, match="--class 1: this latent model"):
        sampler_of(network, ldm, class_idx=1)
    # A run is continued without its network, only without pictures.
    done = CliRunner().invoke(train_main, ["--resume", str(ldm.parent), "--kimg", "0.3"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(list(ldm.parent.glob("samples*.png"))) == 1  # the same thousand of latents


def test_resuming_without_the_network(networks: dict[str, Path], tmp_path: Path) -> None:
    network = tmp_path / "moved.pkl"
    network.write_bytes(networks["dicgan"].read_bytes())
    run_dir = train(network, tmp_path / "ldm").parent
    network.unlink()
    done = CliRunner().invoke(train_main, ["--resume", str(run_dir), "--kimg", "1.1"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "no pictures" in done.output
    assert [path.name for path in run_dir.glob("samples*.png")] == ["samples000000.png"]


@pytest.mark.parametrize(("name", "args", "word"), [
    ("dicgan", ["--space", "s"], "no mapping network"), ("stylegan2", [], "use --space w or s"),
    ("stylegan2", ["--space", "w", "--mirror", "1"], "--mirror"),
    ("stylegan2", ["--space", "w", "--data", "x"], "--data x"),
    ("stylegan2", ["--space", "w", "--cond", "1"], "--cond 1"),
])
def test_spaces_that_do_not_exist(name: str, args: list[str], word: str, networks: dict[str, Path],
                                  tmp_path: Path) -> None:
    done = CliRunner().invoke(train_main, ["--network", str(networks[name]), "--outdir", str(tmp_path / "o"), *args])
    assert done.exit_code == 2
    assert word in done.stderr
    assert not (tmp_path / "o").exists()


# Classes.


def one_sided() -> LatentData:
    """4-d latents whose first value is positive in class 1, and negative in class 0, which is twice as frequent."""
    data = two_moons(200)
    return LatentData(data.latents, data.image_index, data.info, (data.latents[:, 0, 0, 0] > 0).long())


def test_model_learns_classes(tmp_path: Path) -> None:
    config = small_config(kimg=24, tick=24, lr=3e-3, batch=96)
    config["net"]["classes"] = 2
    trainer = Trainer(config, one_sided(), CPU)
    while trainer.progress["cur_nimg"] < 24_000:
        trainer.step()
    prior = Prior("p", trainer.sampling_state(), CPU, trainer.ema)

    def right(**settings: Any) -> float:
        f = prior.sample(range(150), Sampling("dpm2m", 10, **settings))
        return (f[:, 0] > 0).double().mean().item()

    assert right(class_idx=1) > 0.9
    assert right(class_idx=0) < 0.1
    assert right(class_idx=1, cfg_scale=0.0) == pytest.approx(1 / 3, abs=0.15)  # no class at all
    assert right() == pytest.approx(1 / 3, abs=0.12)  # as often as in training
    f = prior.sample(range(150), Sampling("dpm2m", 10))
    assert ((f[:, 0, 0, 0] > 0).long() == torch.tensor(prior.classes_of(range(150), None))).double().mean() > 0.9
    with pytest.raises(UserError, match=r"--class 2: this latent model knows classes 0 .. 1"):
        right(class_idx=2)


@pytest.mark.parametrize(("cfg", "shape"), [("mlp", (4, 1, 1)), ("unet", (2, 4, 4))])
def test_guidance_is_linear_in_its_scale(cfg: str, shape: tuple[int, int, int]) -> None:
    config = resolve(cfg, shape, {})
    config["net"] |= {"classes": 3, **({"width": 32} if cfg == "mlp" else {"channels": 32})}
    net = denoiser.build(config, shape).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, t, y = torch.randn(3, *shape), torch.tensor([1, 500, 999]), torch.tensor([0, 1, 2])
    free, told = net(x, t), net(x, t, y)
    assert not torch.allclose(free, told, atol=1e-3)
    torch.testing.assert_close(net(x, t, torch.full((3,), 3)), free)  # the last row stands for no class
    for scale in (0.0, 1.0, 3.0):
        wanted = free + scale * (told - free)
        torch.testing.assert_close(denoiser.guided(net, y, scale)(x, t), wanted, atol=1e-4, rtol=1e-4)


def test_classes_of_latents_and_images_agree(networks: dict[str, Path], tmp_path: Path) -> None:
    network = networks["icgan"]
    ldm = train(network, tmp_path / "ldm", "--cond", "1")
    prior = load_prior(ldm, CPU)
    assert prior.normalization == "unit"
    seeds = range(12)
    f = prior.sample(seeds, Sampling("dpm2m", 3))
    torch.testing.assert_close(f.flatten(1).norm(dim=1), torch.ones(12))
    # The seeds of a sampler are of the class that their latents were drawn for, whatever a metric would draw.
    free = sampler_of(network, ldm, labels=[1], ldm_steps=3)
    assert free._labels(seeds).tolist() == prior.classes_of(seeds, None)
    assert set(free._labels(range(40)).tolist()) == {0, 1}
    fixed = sampler_of(network, ldm, class_idx=1, cfg_scale=2.0, ldm_steps=3)
    assert fixed._labels(seeds).tolist() == [1] * 12
    assert fixed.provenance["ldm_class_idx"] == 1
    # The same through a file.
    for args, flags in (([], {}), (["--class", "0", "--cfg-scale", "2"], {"cfg_scale": 2.0})):
        done = CliRunner().invoke(sample_main, ["--network", str(ldm), "--seeds", "0-11", "--steps", "3", "--out",
                                                str(tmp_path / "l.pkl"), "--device", "cpu", *args])
        assert done.exit_code == 0, done.output
        stored = sampler_of(network, tmp_path / "l.pkl", **flags)
        live = sampler_of(network, ldm, class_idx=0 if args else None, ldm_steps=3, **flags)
        assert torch.equal(stored._labels(seeds), live._labels(seeds))
        torch.testing.assert_close(stored.condition_latents(seeds), live.condition_latents(seeds), atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="sampled with class_idx 0; leave out --class"):
        sampler_of(network, tmp_path / "l.pkl", class_idx=1)


def test_classes_in_w(networks: dict[str, Path], tmp_path: Path) -> None:
    network = networks["stylegan2cond"]
    ldm = train(network, tmp_path / "ldm", "--space", "w", "--samples", "100", "--cond", "1")
    told, free = sampler_of(network, ldm, class_idx=1, ldm_steps=3), sampler_of(network, ldm, ldm_steps=3)
    assert told.batch([0]).shape == free.batch([0]).shape == (1, 3, 32, 32)
    assert told.provenance["ldm_class_idx"] == 1


# h by a chain that ends early.


def gaussian_prior(path: Path) -> Prior:
    """An untrained model, exact for its latents: Gaussian ones with spreads 2, 1, 0.5 and a mean."""
    f = torch.randn(4000, 3, 1, 1, generator=generator("f")) * torch.tensor([2.0, 1.0, 0.5])[:, None, None] + 1
    info = {"gan_hash": "a" * 64, "normalize": "none", "network": "n.pkl", "dataset": {}}
    config = {**resolve("mlp", (3, 1, 1), {}), "seed": 0}
    config["net"]["width"] = 8
    trainer = Trainer(config, LatentData(f, torch.arange(4000), info), CPU)
    checkpoint.save(path, "ldm", trainer.sampling_state())
    return load_prior(path, CPU)


@pytest.mark.parametrize("settings", [Sampling("dpm2m", 30), Sampling("gaussian")], ids=["dpm2m", "gaussian"])
@pytest.mark.parametrize("sigma", [0.0, 0.4, 0.8])
def test_early_end_has_the_distribution_of_h(sigma: float, settings: Sampling, tmp_path: Path) -> None:
    prior = gaussian_prior(tmp_path / "ldm.pkl")
    seeds = range(3000)
    early = prior.sample_noisy(seeds, sigma, settings, batch_size=1000).flatten(1)
    eps = sample_normal(seeds, prior.latent_shape, "eps")
    late = ((1 - sigma**2) ** 0.5 * prior.sample(seeds, settings, batch_size=1000) + sigma * eps).flatten(1)
    for h in (early, late):
        torch.testing.assert_close(h.mean(0), torch.full((3,), (1 - sigma**2) ** 0.5), atol=0.15, rtol=0)
        wanted = (1 - sigma**2) * torch.diag(torch.tensor([4.0, 1.0, 0.25])) + sigma**2 * torch.eye(3)
        torch.testing.assert_close(torch.cov(h.T), wanted, atol=0.25, rtol=0)


def test_early_end_saves_steps_and_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = gaussian_prior(tmp_path / "ldm.pkl")
    times: list[int] = []
    monkeypatch.setattr(prior, "eps", lambda x, t: (times.append(int(t[0])), prior.net(x, t))[1])
    prior.sample_noisy([0], 0.7)
    assert len(times) < 45
    level = float(prior.alpha_bar[times[-1]])
    # The strongest direction has a spread of 2: the last time has more noise than half of h's, and not much more.
    assert ((1 - level) / level) ** 0.5 == pytest.approx(0.7 / 0.51**0.5 / 2, rel=0.25)
    with pytest.raises(UserError, match="--sigma"):
        prior.sample_noisy([0], 0.999999999)


def test_truncated_h_through_the_scripts(networks: dict[str, Path], tmp_path: Path) -> None:
    network = networks["dicgan"]
    ldm = train(network, tmp_path / "ldm")
    early = sampler_of(network, ldm, ldm_h="truncated", ldm_steps=20)
    assert early.provenance["ldm_h"] == "truncated"
    late = sampler_of(network, ldm, ldm_h="renoised", ldm_steps=20)
    assert torch.equal(late.batch([0]), sampler_of(network, ldm, ldm_steps=20).batch([0]))
    assert not torch.equal(early.batch([0]), late.batch([0]))
    assert (early.batch([0, 1]).int()[1] - early.batch([1]).int()[0]).abs().max() <= 1
    # What G is told as h is the state itself: the latents times sqrt(1 - sigma^2), with nothing added.
    told: list[torch.Tensor] = []
    early.gan.G.register_forward_pre_hook(lambda module, args, kwargs: told.append(kwargs["h"]), with_kwargs=True)
    early.batch([5])
    expected = load_prior(ldm, CPU).sample_noisy([5], 0.5, Sampling(steps=20))
    torch.testing.assert_close(told[0], expected, atol=1e-5, rtol=1e-5)
    # Less noise at the end of the chain is another h.
    less = sampler_of(network, ldm, ldm_h="truncated", ldm_steps=20, sigma=0.2)
    assert not torch.equal(less.batch([5]), early.batch([5]))
    done = CliRunner().invoke(sample_main, ["--network", str(ldm), "--seeds", "0", "--out", str(tmp_path / "l.pkl")])
    assert done.exit_code == 0, done.output
    with pytest.raises(UserError, match="finished latents"):
        sampler_of(network, tmp_path / "l.pkl", ldm_h="truncated")


@pytest.mark.parametrize("flags", [{"ldm_sampler": "pc"}, {"ldm_h": "truncated"}, {"cfg_scale": 2.0}], ids=str)
def test_flags_of_ldm_need_it(flags: dict[str, Any], networks: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="belong to --ldm"):
        open_sampler(load_gan(networks["dicgan"], CPU), SourceFlags(**flags), open_latents=open_latents,
                     images=lambda flag: pytest.fail("not needed"))


def test_way_into_noise_and_back(tmp_path: Path) -> None:
    trainer = Trainer(small_config(), two_moons(), CPU)
    for _ in range(30):
        trainer.step()
    prior = Prior("p", trainer.sampling_state(), CPU, trainer.ema)
    f = two_moons().latents[:8]
    codes = prior.encode(f, 200)
    from ldm import ddim, schedule

    back = prior.decode(ddim.sample(prior.eps, codes, prior.alpha_bar, schedule.timesteps(200)))
    torch.testing.assert_close(back, f, atol=0.05, rtol=0)
