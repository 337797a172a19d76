"""The report: every section from a made-up run, without outside resources, with every name escaped."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from torch_utils import checkpoint
from training.report import main
from training.report_data import read_lines, split_title
from training.report_parts import Line, chart, number, ticks

EVIL = '<script>alert("x")</script>&'
DATA = {"path": "/sets/earth.zip", "name": EVIL, "resolution": 32, "num_images": 40, "label_dim": 0,
        "fingerprint": "ab" * 32, "mirror": True, "use_labels": False, "max_images": None}


def picture(path: Path, side: int = 256, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return path


def mean(value: float) -> dict[str, float]:
    return {"num": 10, "mean": value, "std": 0.1}


def stats_line(tick: int) -> dict[str, Any]:
    falling = 1 / (1 + tick)
    return {"Progress/tick": tick, "Progress/kimg": float(tick),
            "Loss/G/loss": mean(0.3 + falling), "Loss/D/real": mean(0.9 - falling / 3), "Loss/D/fake": mean(0.8),
            "Loss/scores/real": mean(0.2 * tick), "Loss/scores/fake": mean(-0.2 * tick),
            "Loss/G/information": mean(falling), "Latent/perplexity": mean(5.0), "Latent/mean_cosine": mean(0.0),
            "Latent/effective_rank": mean(15.0), "Latent/retrieval_rank": mean(128 * (0.5 + falling / 2)),
            "Latent/retrieval_chance": mean(128.5), "Timing/img_per_sec": 20.0 + tick, "Timing/total_sec": 60.0 * tick}


def make_run(folder: Path, ticks_done: int = 6) -> Path:
    folder.mkdir(parents=True)
    encoder = {"class_name": "pg_modules.encoder.FrozenEncoder", "latent_shape": [16, 1, 1]}
    options = {"cfg": "dicgan_demo", "data": DATA, "run": {"batch": 16}, "G": {"encoder": encoder}}
    (folder / "training_options.json").write_text(json.dumps(options))
    (folder / "stats.jsonl").write_text("".join(json.dumps(stats_line(t + 1)) + "\n" for t in range(ticks_done)))
    (folder / "log.txt").write_text("Run directory: x\nDevice:  cpu, 2 threads, amp bf16\n")
    for index, name in enumerate(["reals", "fakes_init", "fakes000004", "fakes000006"]):
        picture(folder / f"{name}.png", seed=index)
    state = {"versions": {"torch": "9.8.7"}, "progress": {"cur_nimg": 6016, "seconds": 365.0},
             "conditioning": {"sigma": 0.678}}
    checkpoint.save(folder / "network-snapshot-000006.pkl", "gan", state)
    return folder


def make_ldm(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "training_options.json").write_text(json.dumps({"cfg": "mlp"}))
    lines = [{"Progress/kimg": 50.0 * t, "Loss/train": mean(0.5 / t), "Loss/heldout": mean(0.55 / t),
              "Loss/gaussian_guess": mean(0.5), "Timing/total_sec": 9.0 * t} for t in range(1, 8)]
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = {"progress": {"seconds": 63.0}, "best": {"loss": 0.41234, "cur_nimg": 300}, "gaussian_guess": 0.45678}
    checkpoint.save(folder / "network-snapshot-000350.pkl", "ldm", state)
    return folder


def metric(path: Path, name: str, results: dict[str, float], **extra: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"results": results, "metric": name, "num_fake": 2000, "num_real": 40, "seed": 0,
              "detector": {"name": "efficientnet_lite2", "weights_hash": "c0ffee" * 10},
              "resize": "bicubic", "dataset": DATA, "copying": {"ratio": 0.973, "bar": EVIL},
              "notes": ["EfficientNet-Lite2 features: not comparable with FID"], "versions": {"torch": "9.8.7"},
              "snapshot_pkl": "network-snapshot-000006.pkl", **extra}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    return path


class Page(HTMLParser):
    """Collects what a browser would load and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def report(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def full_arguments(folder: Path) -> list[Any]:
    run, control, ldm = make_run(folder / "run"), make_run(folder / "control"), make_ldm(folder / "ldm")
    for index in range(6):
        picture(folder / f"refs/r{index}.png", 48, index)
        picture(folder / f"samples/seed{index:04d}.png", 32, 9 + index)
    (folder / "commands.txt").write_text(f"python train.py --desc '{EVIL}'\n")
    fid = metric(folder / "m/ref/metric-fid2k_full.jsonl", "fid2k_full", {"fid2k_full": 111.5})
    metric(fid, "fid2k_full", {"fid2k_full": 222.5})
    kid = metric(folder / "m/ref/metric-kid2k_full.jsonl", "kid2k_full",
                 {"kid2k_full": 0.0421, "kid2k_full_std": 0.0013})
    noise = metric(folder / "m/noise/metric-kid_full.jsonl", "kid_full", {"kid_full": 1.5, "kid_full_std": 0.1},
                   copying={"ratio": None}, snapshot_pkl=None)
    ranks = metric(folder / "m/ref/metric-retrieval.jsonl", "retrieval",
                   {"retrieval_median_rank": 144.0, "retrieval_chance": 255.5, "retrieval_ratio": 0.5636})
    return ["--run", run, "--control", control, "--ldm", ldm, "--grid", f"{EVIL}={picture(folder / 'g.png', 512)}",
            "--references", folder / "refs", "--ref-samples", folder / "samples", "--metrics", f"{EVIL}={fid}",
            "--metrics", f"{EVIL}={kid}", "--metrics", noise, "--metrics", f"{EVIL}={ranks}",
            "--commands", folder / "commands.txt", "--out", folder / "report.html"]


def test_full_report(tmp_path: Path) -> None:
    result = report(*full_arguments(tmp_path))
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.headings == ["What this is", "Samples", "Training images", "How it learned to draw", "Curves",
                             "Quality and copying", "Does the generator use its condition?", "Commands", "Versions"]
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.urls
    assert all(url.startswith("data:image/") for url in page.urls)
    assert not re.search(r"url\(|@import|https?://", text)
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    assert 'class="missing"' not in text
    assert page.tags.count("img") == 1 + 6 * 2 + 1 + 3
    assert page.tags.count("svg") == 9
    # Newest record of a file, values of equal titles in one row, provenance, and both networks' versions.
    assert "222.5" in text
    assert "111.5" not in text
    assert "0.0421 ± 0.0013" in text
    assert "c0ffee" in text
    assert "not comparable with FID" in text
    assert "0.973" in text
    assert "9.8.7" in text
    assert "144" in text
    assert "0.4123, Gaussian guess 0.4568: the model beats it" in text
    assert "6,016" in text
    assert "0.678" in text
    assert "cpu, 2 threads" in text


def test_only_a_run_that_just_began(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    options = {"cfg": "fastgan", "data": DATA, "run": {"batch": 64}, "G": {"encoder": None}}
    (tmp_path / "run/training_options.json").write_text(json.dumps(options))
    result = report("--run", tmp_path / "run", "--out", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert Page(text).open == []
    for sentence in ("No grid of samples", "has no reals.png", "no fakes*.png", "not finished its first tick",
                     "No latent diffusion run", "No metrics were given", "Retrieval was not measured",
                     "commands were not recorded", "no snapshot"):
        assert sentence in text


@pytest.mark.parametrize(("change", "named"), [
    (lambda a, f: a.__setitem__(slice(0, 2), []), "--run is missing"),
    (lambda a, f: a.__setitem__(1, f / "nowhere"), "nowhere"),
    (lambda a, f: (f / "run/training_options.json").write_text("{"), "training_options.json is damaged"),
    (lambda a, f: (f / "ldm/training_options.json").unlink(), "--ldm"),
    (lambda a, f: (f / "g.png").write_bytes(b"no picture"), "g.png"),
    (lambda a, f: (f / "m/noise/metric-kid_full.jsonl").write_text("{}\n"), "metric-kid_full.jsonl"),
    (lambda a, f: (f / "m/noise/metric-kid_full.jsonl").unlink(), "metric-kid_full.jsonl"),
    (lambda a, f: (f / "run/stats.jsonl").write_text("[1]\n{}\n"), "line 1 is damaged"),
    (lambda a, f: (f / "run/network-snapshot-000006.pkl").write_bytes(b"x"), "network-snapshot-000006.pkl"),
    (lambda a, f: (f / "commands.txt").unlink(), "commands.txt"),
    (lambda a, f: [p.unlink() for p in (f / "samples").iterdir()], "seed0000.png"),
    (lambda a, f: a.__setitem__(slice(8, 10), []), "--references and --ref-samples belong together"),
])
def test_bad_inputs_are_one_line(tmp_path: Path, change: Any, named: str) -> None:
    arguments = full_arguments(tmp_path)
    change(arguments, tmp_path)
    result = report(*arguments)
    assert result.exit_code == 2, result.output
    assert len(result.output.strip().splitlines()) == 1
    assert named in result.output
    assert not (tmp_path / "report.html").exists()


def test_torn_last_line_of_a_killed_run(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    arguments = full_arguments(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (2048, 2048, 3), dtype=np.uint8)).save(tmp_path / "g.png")
    assert report(*arguments).exit_code == 0
    assert (tmp_path / "report.html").stat().st_size < (tmp_path / "g.png").stat().st_size / 4


def test_titles_and_paths(tmp_path: Path) -> None:
    assert split_title("A b=x/y.png") == ("A b", Path("x/y.png"))
    assert split_title("x/y.png") == ("", Path("x/y.png"))
    odd = picture(tmp_path / "a=b.png", 32)
    assert split_title(str(odd)) == ("", odd)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.37, 0.3701), (-3, 8), (5, 5), (0, 0), (1e-6, 3e-6), (0, 123456)])
def test_ticks_enclose_the_data(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert found == sorted(set(found))
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9


def test_charts_stay_inside_their_frame_and_skip_what_is_not_finite() -> None:
    text = chart("T", [Line("a", [(1.0, 2.0), (2.0, float("nan")), (3.0, -7.5)]), Line("none", [])], "x")
    points = re.findall(r'points="([^"]+)"', text)
    assert len(points) == 1
    places = [tuple(map(float, place.split(","))) for place in points[0].split()]
    assert len(places) == 2
    assert all(0 <= x <= 420 and 0 <= y <= 230 for x, y in places)
    assert places[1][1] > places[0][1]
    assert chart("T", [Line("a", [(1.0, float("inf"))])], "x") == ""
    assert chart("T", [Line("a", [(1.0, 0.0)])], "x", log=True) == ""


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (float("nan"), "–"), (0.04213, "0.0421"), (101.4, "101"),
                                             (6016, "6,016"), (12345.6, "12,346"), (0.0, "0.00"),
                                             (-0.00031, "-0.000310")])
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text
