"""Conditioning at test time: tasks, priors on a mixture with the exact score, and the command on tiny networks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from runs import CPU, open_set, tiny_config
from test_ldm_samplers import LINEAR, mixture_eps

import condition
import gen_images
from dnnlib import UserError
from ldm import ddim, guide, guide_priors, schedule
from ldm.ddim import EpsFn
from ldm.guidance import perceptual
from ldm.guidance.inpaint import Inpainting
from ldm.guidance.similarity import Similarity
from ldm.guidance.text import NamedClass, class_loss, find_classes
from ldm.guide_run import Diffusion
from ldm.train import main as train_main
from metrics.detectors import load_detector
from torch_utils.rng import generator
from training.conditioning_inputs import HOLES, hole, read_hole, read_targets
from training.conditioning_options import PRIORS, parse_priors
from training.preparation import prepare
from training.run_state import RunState


def pictures(count: int, name: str, side: int = 32) -> torch.Tensor:
    """Smooth images ``[count, 3, side, side]`` in [-1, 1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=generator(name))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") * 2 - 1


# Tasks.


def test_similarity_is_zero_at_the_target_only() -> None:
    target, other = pictures(2, "target"), pictures(2, "other")
    task = Similarity(target, 1.0)
    assert task.loss(target).abs().max() < 1e-6
    assert task.loss(other).min() > 0.1
    halfway = task.loss(0.5 * target + 0.5 * other)
    assert bool((halfway < task.loss(other)).all())
    # The pixel term is what is added.
    added = Similarity(target, 3.0).loss(other) - task.loss(other)
    torch.testing.assert_close(added, 2 * (other - target).square().mean(dim=(1, 2, 3)))


def test_inpainting_looks_at_the_kept_part_alone() -> None:
    target, img = pictures(2, "target"), pictures(2, "other").requires_grad_()
    missing = hole("right-half", 32, 32)
    task = Inpainting(target, missing, 1.0)
    (gradient,) = torch.autograd.grad(task.loss(img).sum(), img)
    assert gradient[..., missing].abs().max() == 0
    assert (gradient[..., ~missing].abs() > 0).double().mean() > 0.9
    assert task.loss(torch.where(missing, img, target)).abs().max() < 1e-6
    with pytest.raises(ValueError, match="all hole"):
        Inpainting(target, torch.ones(32, 32, dtype=torch.bool), 1.0)


def test_each_image_has_its_own_target() -> None:
    target, img = pictures(3, "target"), pictures(4, "other")
    for task in (Similarity(target, 1.0), Inpainting(target, hole("center", 32, 32), 1.0)):
        assert task.num_targets == 3
        together = task.select([0, 1, 2, 0]).loss(img)
        apart = torch.cat([task.select([k % 3]).loss(img[k:k + 1]) for k in range(4)])
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", HOLES)
def test_holes(name: str) -> None:
    missing = hole(name, 8, 16)
    assert missing.double().mean() == (0.25 if name == "center" else 0.5)
    assert missing[(0, -1)["bottom" in name], (0, -1)["right" in name]] == (name != "center")


def test_class_loss_falls_as_the_logit_rises() -> None:
    logits = torch.randn(2, 10, generator=generator("logits"))
    raised = logits.clone()
    raised[:, 3] += 1
    assert bool((class_loss(raised, [3]) < class_loss(logits, [3])).all())
    assert bool((class_loss(raised, [4]) > class_loss(logits, [4])).all())
    both = class_loss(logits, [3, 4])
    torch.testing.assert_close(both, -torch.log(logits.softmax(1)[:, [3, 4]].sum(1)))


def test_gradients_make_an_image_of_a_class() -> None:
    task, img = NamedClass("goldfish"), pictures(1, "text", 64).requires_grad_()
    before = task.loss(img)
    (gradient,) = torch.autograd.grad(before.sum(), img)
    with torch.no_grad():
        assert task.loss(img - 0.02 * gradient.sign()) < before - 0.3


def test_classes_by_name() -> None:
    assert find_classes("goldfish") == find_classes("Carassius auratus") == [1]
    assert find_classes("racecar") == find_classes("Race Car") == [751]
    assert find_classes("crane") == [134, 517]  # a bird, and a machine
    with pytest.raises(UserError, match=r"'sprots car' .*sports car.*--clip-weights"):
        find_classes("sprots car")
    with pytest.raises(UserError, match=r"'goldfihs' .*goldfish"):
        find_classes("goldfihs")


class TinyClip(torch.nn.Module):
    """A stand-in for open_clip's models: an image's mean colour, and a fixed embedding of every text."""

    visual = SimpleNamespace(image_size=16, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2:] == (16, 16)
        return x.mean(dim=(2, 3))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.eye(3)[tokens[:, 0]]


def test_clip_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm.guidance.clip import ClipText

    monkeypatch.setitem(sys.modules, "open_clip", None)  # as if it weren't installed
    with pytest.raises(UserError, match="pip install open_clip_torch"):
        ClipText("red", "clip.pt", "tiny", CPU)
    made = []

    def create(model: str, pretrained: str, device: torch.device) -> TinyClip:
        made.append((model, pretrained))
        return TinyClip()

    monkeypatch.setitem(sys.modules, "open_clip", SimpleNamespace(
        list_models=lambda: ["tiny"], create_model=create,
        get_tokenizer=lambda model: lambda texts: torch.tensor([[("red", "green").index(t)] for t in texts])))
    weights = tmp_path / "clip.pt"
    with pytest.raises(UserError, match=r"--clip-weights .*does not exist"):
        ClipText("red", str(weights), "tiny", CPU)
    weights.write_bytes(b"weights")
    with pytest.raises(UserError, match="--clip-model huge"):
        ClipText("red", str(weights), "huge", CPU)
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1).expand(2, 3, 32, 32)
    torch.testing.assert_close(ClipText("red", str(weights), "tiny", CPU).loss(red), torch.zeros(2))
    torch.testing.assert_close(ClipText("green", str(weights), "tiny", CPU).loss(red), torch.ones(2))
    assert made == [("tiny", str(weights))] * 2


def test_the_judge_never_guides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_detector().network == perceptual.JUDGE != perceptual.GUIDE
    seen = []

    def load(name: str) -> Any:
        seen.append(name)
        return backbones(name)

    backbones = perceptual.load_backbone
    monkeypatch.setattr(perceptual, "load_backbone", load)
    img = pictures(1, "judge")
    for task in (Similarity(img, 1.0), Inpainting(img, hole("center", 32, 32), 1.0), NamedClass("goldfish")):
        task.loss(img)
    assert set(seen) == {perceptual.GUIDE}
    monkeypatch.setattr(perceptual, "GUIDE", perceptual.JUDGE)
    with pytest.raises(AssertionError, match="may not guide"):
        perceptual.guiding_network()


# Priors, on a mixture whose score is known. The task asks for a place between its two components, off both.

WEIGHTS = [0.5, 0.5]
MEANS = torch.tensor([[1.5, 0.0], [-1.5, 0.0]], dtype=torch.float64)
COVS = torch.diag(torch.tensor([0.02, 1.0], dtype=torch.float64)).expand(2, 2, 2)
PLACE = torch.tensor([0.6, 1.0], dtype=torch.float64)
EPS: EpsFn = mixture_eps(WEIGHTS, MEANS, COVS)


def log_density(x: torch.Tensor) -> torch.Tensor:
    parts = [torch.distributions.MultivariateNormal(mean, cov).log_prob(x)
             for mean, cov in zip(MEANS, COVS, strict=True)]
    return torch.stack(parts, 1).logsumexp(1) - np.log(2)


def task_loss(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x - PLACE).square().sum(1)


def ignore(i: int, x: torch.Tensor, task: torch.Tensor, prior: torch.Tensor) -> None:
    """A `ldm.guide.Watch` that looks away."""


def data(count: int) -> torch.Tensor:
    """Samples of the mixture."""
    rng = generator("mixture")
    rows = MEANS[torch.randint(2, (count,), generator=rng)]
    return rows + torch.randn(count, 2, dtype=torch.float64, generator=rng) @ COVS[0].sqrt()


def descend(count: int = 40, **prior: Any) -> torch.Tensor:
    return guide.optimise(task_loss, data(count), guide.Descent(60, 0.1), project=lambda x: x, watch=ignore, **prior)


def test_without_a_prior_latents_leave_the_data() -> None:
    start, end = data(40), descend()
    assert task_loss(end).mean() < 0.05
    assert log_density(end).max() < log_density(start).mean() - 10


def test_the_diffusion_prior_stays_with_the_data() -> None:
    """Also with a component that is far from what the task asks for, if a sample started there."""
    times = guide_priors.noise_times(LINEAR, 10, 10)
    start, end = data(40), descend(update=guide_priors.diffusion_update(EPS, LINEAR, times))
    assert log_density(end).mean() > log_density(start).mean() - 0.5
    assert task_loss(end).mean() < 0.7 * task_loss(start).mean()
    assert (end[:, 1] - PLACE[1]).abs().median() < 0.1  # where the data allow it
    assert ((end[:, 0] > 0) == (start[:, 0] > 0)).double().mean() > 0.9


def steer(noise: torch.Tensor, scale: float, inner: int = 2) -> torch.Tensor:
    times = schedule.timesteps(30, 1000, "quadratic")
    return guide.guide(task_loss, noise, EPS, LINEAR, times, scale=scale, inner=inner, watch=ignore)


def test_guidance_steers_and_stays_with_the_data() -> None:
    """From noise, samples find the component that is nearer to what the task asks for."""
    noise = torch.randn(40, 2, dtype=torch.float64, generator=generator("noise"))
    plain, end = steer(noise, 0.0), steer(noise, 0.05)
    times = schedule.timesteps(30, 1000, "quadratic")
    torch.testing.assert_close(plain, ddim.sample(EPS, noise, LINEAR, times), rtol=0, atol=0)
    assert task_loss(end).mean() < 0.3 * task_loss(plain).mean()
    assert log_density(end).mean() > log_density(plain).mean() - 1
    assert (plain[:, 0] > 0).double().mean() < 0.7
    assert (end[:, 0] > 0).double().mean() > 0.85


def test_mean_and_cluster_pull() -> None:
    """With a heavy weight latents end at the mean, or at the centre nearest to them; with none at the task's place."""
    assert descend(penalty=guide_priors.mean_penalty, weight=1000.0).abs().max() < 0.2
    centres = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [30.0, 0.0]], dtype=torch.float64)
    start, end = data(40), descend(penalty=guide_priors.cluster_penalty(centres), weight=1000.0)
    torch.testing.assert_close(end, centres[torch.cdist(start, centres).argmin(1)], rtol=0, atol=0.2)
    penalty = guide_priors.cluster_penalty(centres)(torch.tensor([[1.0, 3.0], [-1.0, -1.0]], dtype=torch.float64))
    assert penalty.tolist() == [2.0, 0.0]  # per value


def test_noise_in_percent() -> None:
    """5 % is where sqrt(1 - alpha-bar) is 0.05, between the times 10 and 11 of the linear schedule."""
    assert guide_priors.noise_times(LINEAR, 5, 11) == list(range(10, -1, -1))
    assert guide_priors.noise_times(LINEAR, 5, 1) == [10]
    with pytest.raises(UserError, match=r"--noise 5: .*11 times.*--prior-updates 11"):
        guide_priors.noise_times(LINEAR, 5, 12)
    with pytest.raises(UserError, match=r"--noise 0.5: .*no time"):
        guide_priors.noise_times(LINEAR, 0.5, 1)


@pytest.mark.parametrize("name", ["none", "diffusion", "guided"])
def test_samples_do_not_depend_on_their_batch(name: str) -> None:
    times = guide_priors.noise_times(LINEAR, 5, 10)

    def run(x: torch.Tensor) -> torch.Tensor:
        if name == "guided":
            return steer(x, 0.1)
        update = guide_priors.diffusion_update(EPS, LINEAR, times) if name == "diffusion" else None
        return guide.optimise(task_loss, x, guide.Descent(20, 0.1), project=lambda x: x, watch=ignore, update=update)

    x = data(5)
    torch.testing.assert_close(run(x), torch.cat([run(row[None]) for row in x]), rtol=0, atol=1e-9)


def test_a_model_that_knows_classes_is_told_the_class() -> None:
    told = []

    def net(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        told.append(y)
        return x

    x, t = torch.zeros(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64)
    prior: Any = SimpleNamespace(labels=torch.tensor([0, 1]), net=net, eps=net, alpha_bar=LINEAR)
    Diffusion.of(prior, 1).eps(x, t)
    prior.labels = None
    Diffusion.of(prior, None).eps(x, t)
    assert told[0] is not None
    assert told[0].tolist() == [1, 1, 1]
    assert told[1] is None


# The command.

KINDS = {"h": "dicgan_demo", "w": "stylegan2_demo"}


@pytest.fixture(scope="module")
def networks(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """A tiny network for each space, with its latent diffusion model."""
    folder = tmp_path_factory.mktemp("networks")
    made = {}
    for space, cfg in KINDS.items():
        torch.manual_seed(0)
        dataset = open_set(tiny_set, cfg, mirror=False)
        run = RunState(tiny_config(cfg, dataset, mirror=False), CPU)
        prepare(run, dataset, folder, fit=True, resumed=False)
        run.save(folder / f"{space}.pkl")
        args = ["--network", folder / f"{space}.pkl", "--outdir", folder / f"ldm-{space}", "--kimg", "0.1", "--tick",
                "0.1", "--batch", "32", "--device", "cpu", "--pictures", "0", "--space", space.replace("h", "f")]
        args += ["--samples", "100"] if space == "w" else []
        done = CliRunner().invoke(train_main, [str(arg) for arg in args])
        assert done.exit_code == 0, (done.output, done.exception)
        made[space] = folder / f"{space}.pkl", next((folder / f"ldm-{space}").glob("*/best_model.pkl"))
    return made


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of 40 x 40."""
    folder = tmp_path_factory.mktemp("targets")
    for k, img in enumerate(pictures(2, "targets", 40)):
        array = ((img + 1) * 127.5).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{k}.png")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DICGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(condition.main, [str(arg) for arg in args])


FEW = ["--samples", "3", "--batch", "2", "--iterations", "2", "--steps", "2", "--inner", "1", "--frames", "3",
       "--clusters", "3", "--latents", "40", "--device", "cpu"]
TASKS: dict[str, Callable[[Path], list[str | Path]]] = {
    "inpaint": lambda target: ["--target", target, "--mask", "right-half"],
    "similar": lambda target: ["--target", target / "0.png"],
    "text": lambda target: ["--text", "goldfish"],
}


@pytest.mark.parametrize(("task", "space"), [("inpaint", "h"), ("similar", "w"), ("text", "h")])
def test_all_priors(task: str, space: str, networks: dict[str, tuple[Path, Path]], target: Path,
                    tmp_path: Path) -> None:
    network, ldm = networks[space]
    done = run(task, "--network", network, "--ldm", ldm, *TASKS[task](target), "--outdir", tmp_path, *FEW)
    assert done.exit_code == 0, (done.output, done.exception)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [r["prior"] for r in records] == list(PRIORS)
    for record in records:
        assert record["space"] == space
        assert record["samples"] == 3
        assert record["detector"]["network"] == "tf_efficientnet_lite2"
        assert record["task_loss"] > 0
        assert record["fd"] > 0
        assert (record["diversity_within"] is not None) == (task == "inpaint")  # samples 0 and 2 share a target
        assert record["prior"] in done.output
    curves = (tmp_path / "curves.csv").read_text().splitlines()
    assert len(curves) == 1 + 2 * len(PRIORS)
    assert float(curves[1].split(",")[2]) > 0
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width >= 64 * (len(PRIORS) + {"inpaint": 2, "similar": 1, "text": 0}[task])
    assert (tmp_path / "curves.png").is_file()
    for name in PRIORS:
        with Image.open(tmp_path / name / "frames.png") as frames:
            assert frames.size == (3 * 32, 3 * 32)
        assert sorted(p.name for p in (tmp_path / name).glob("seed*")) == [f"seed000{k}.png" for k in range(3)]
    # The latents make the same images again.
    again = CliRunner().invoke(gen_images.main, [
        "--network", str(network), "--ldm", str(tmp_path / "none/latents.pkl"), "--seeds", "0-2", "--outdir",
        str(tmp_path / "again"), "--device", "cpu"])
    assert again.exit_code == 0, (again.output, again.exception)
    for k in range(3):
        first, second = (np.array(Image.open(tmp_path / folder / f"seed000{k}.png")).astype(int)
                         for folder in ("none", "again"))
        assert np.abs(first - second).max() <= 1


def test_style_space_without_a_latent_model(networks: dict[str, tuple[Path, Path]], target: Path,
                                            tmp_path: Path) -> None:
    network = networks["w"][0]
    few = ["--samples", "2", "--iterations", "2", "--frames", "0", "--latents", "60", "--device", "cpu"]
    done = run("similar", "--network", network, "--space", "s", "--prior", "none", "--prior", "mean", "--target",
               target, "--outdir", tmp_path, *few)
    assert done.exit_code == 0, (done.output, done.exception)
    assert not list(tmp_path.glob("*/frames.png"))
    assert json.loads((tmp_path / "results.jsonl").read_text().splitlines()[1])["space"] == "s"


def test_samples_of_a_run_depend_on_their_seed_alone(networks: dict[str, tuple[Path, Path]], target: Path,
                                                     tmp_path: Path) -> None:
    """The third sample in a batch of its own, and as the first of another run with its target."""
    network, ldm = networks["h"]
    args: list[str | Path] = ["similar", "--network", network, "--ldm", ldm, "--prior", "diffusion,guided", "--frames",
                              "0", "--iterations", "2", "--steps", "2", "--inner", "1", "--device", "cpu"]
    assert run(*args, "--target", target, "--outdir", tmp_path / "a", "--samples", "3", "--batch", "2").exit_code == 0
    assert run(*args, "--target", target / "0.png", "--outdir", tmp_path / "b", "--samples", "2", "--seed", "2",
               "--batch", "1").exit_code == 0
    for prior in ("diffusion", "guided"):
        a, b = (np.array(Image.open(tmp_path / run / prior / "seed0002.png")).astype(int) for run in "ab")
        assert np.abs(a - b).max() <= 1


def test_of_many_targets_some_are_chosen(target: Path) -> None:
    """The same for the same number; a smaller choice is part of a larger one."""
    both = read_targets(str(target), (3, 32, 32), 2)
    assert torch.equal(both, read_targets(str(target), (3, 32, 32), 5))
    one = read_targets(str(target), (3, 32, 32), 1)
    assert one.shape == (1, 3, 32, 32)
    assert any(torch.equal(one[0], img) for img in both)


def mask_of(folder: Path, array: np.ndarray) -> Path:
    path = folder / "mask.png"
    Image.fromarray(array).save(path)
    return path


def test_masks_from_files(tmp_path: Path) -> None:
    """White is missing; larger masks of the same shape are reduced."""
    array = np.zeros((64, 64), np.uint8)
    array[:, 40:] = 255
    missing = read_hole(str(mask_of(tmp_path, array)), 32, 32)
    assert bool(missing[:, 20:].all())
    assert not bool(missing[:, :20].any())
    for wrong, message in ((np.zeros((64, 48), np.uint8), "48x64.*32x32"), (np.zeros((32, 32), np.uint8), "black all"),
                           (np.full((32, 32), 255, np.uint8), "white all")):
        with pytest.raises(UserError, match=message):
            read_hole(str(mask_of(tmp_path, wrong)), 32, 32)


@pytest.mark.parametrize(("args", "message"), [
    (["inpaint", "--network", "{h}", "--target", "{t}", "--mask", "nothing.png"], "--mask nothing.png: there is no"),
    (["inpaint", "--network", "{h}", "--target", "gone.png", "--mask", "center"], "--target gone.png does not exist"),
    (["text", "--network", "{h}", "--text", "goldfihs"], "'goldfihs' .*goldfish"),
    (["text", "--network", "{h}", "--text", "goldfish", "--clip-model", "x"], "--clip-model belongs to"),
    (["similar", "--network", "{h}", "--target", "{t}", "--space", "w"], "--space w: .*no mapping network"),
    (["similar", "--network", "{w}", "--target", "{t}", "--space", "h"], "--space h: .*told of no instance"),
    (["similar", "--network", "{w}", "--target", "{t}", "--ldm", "{lh}"], "belongs to another GAN"),
    (["similar", "--network", "{w}", "--target", "{t}", "--ldm", "{lw}", "--space", "s"], "models w, not --space s"),
    (["similar", "--network", "{h}", "--target", "{t}", "--prior", "best"], "--prior best: choose none"),
    (["similar", "--network", "{h}", "--target", "{t}", "--prior", "all"], "--prior diffusion, guided: needs --ldm"),
    (["similar", "--network", "{h}", "--target", "{t}", "--steps", "5"], "--steps belongs to --prior guided"),
    (["similar", "--network", "{h}", "--target", "{t}", "--latents", "50"], "--latents: without --ldm"),
    (["similar", "--network", "{h}", "--target", "{t}", "--frames", "1"], "--frames 1"),
    (["similar", "--network", "{h}", "--target", "{t}", "--class", "1"], "--class 1: .*without classes"),
    (["similar", "--network", "{h}", "--target", "{t}", "--data", "{t}"], "must be converted first"),
    (["similar", "--network", "{h}", "--target", "{t}", "--ldm", "{lh}", "--prior", "guided", "--steps", "2000"],
     "--steps 2000: .*1000"),
    (["similar", "--network", "{h}", "--target", "{t}", "--ldm", "{lh}", "--prior", "diffusion", "--noise", "0.1"],
     "--noise 0.1: "),
])
def test_bad_input(args: list[str], message: str, networks: dict[str, tuple[Path, Path]], target: Path,
                   tmp_path: Path) -> None:
    names = {"h": networks["h"][0], "lh": networks["h"][1], "w": networks["w"][0], "lw": networks["w"][1], "t": target}
    given = [arg.format(**names) for arg in args]
    if "--prior" not in given and "--ldm" not in given:
        given += ["--prior", "none"]
    done = run(*given, "--outdir", tmp_path / "out", "--device", "cpu")
    assert done.exit_code == 2, (done.output, done.exception)
    assert len(done.output.strip().splitlines()) == 1
    assert re.search(message, done.output), done.output
    assert not (tmp_path / "out").exists()


def test_priors_are_named_in_lists() -> None:
    assert parse_priors([]) == parse_priors(["all"]) == list(PRIORS)
    assert parse_priors(["guided, none", "none"]) == ["none", "guided"]
