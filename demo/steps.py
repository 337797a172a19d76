"""The steps of the demo as commands of the project's own scripts, and what is known of an earlier call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from demo.plan import Command, Step
from dnnlib import UserError, atomic_write, content_hash

ROOT = Path(__file__).resolve().parents[1]
TRAINERS = {"train": "train.py", "control": "train.py", "ldm": "ldm/train.py"}


class Demo:
    """Paths, steps and state of a demo in one folder."""

    def __init__(self, out: Path, minutes: float, control_minutes: float, ldm_minutes: float, images: str) -> None:
        self.out, self.images = out, images
        self.minutes = {"train": minutes, "control": control_minutes, "ldm": ldm_minutes}
        self.state: dict[str, Any] = {"finished": {}, "begun": {}}
        if (out / "demo.json").is_file():
            try:
                self.state = json.loads((out / "demo.json").read_text(encoding="utf-8"))
                for entry in [*self.state["finished"].values(), *self.state["begun"].values()]:
                    if set(entry) != {"params", "old", "seconds", "commands"}:
                        raise ValueError("it has another form")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{out / 'demo.json'} is damaged ({error}); start over with --fresh.") from error
        self.heldout = len(json.loads((ROOT / "demo/earth_64_split.json").read_text(encoding="utf-8"))["test"])
        self.steps = self._steps()

    def path(self, *parts: str) -> str:
        """A path below the demo's folder as commands name it: relative to the project if it lies inside."""
        full = self.out.joinpath(*parts)
        return str(full.relative_to(ROOT)) if full.is_relative_to(ROOT) else str(full)

    # Training runs.

    def params(self, kind: str) -> dict[str, dict[str, Any]]:
        """Parameters of the steps that are ``finished`` or ``begun``."""
        return {name: entry["params"] for name, entry in self.state[kind].items()}

    def run_dirs(self, name: str) -> list[str]:
        """Names of all run directories of a training step, oldest first."""
        folder = self.out / ("ldm" if name == "ldm" else "runs")
        found = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        return [n for n in found if name == "ldm" or n.endswith("-control") == (name == "control")]

    def run_dir(self, name: str) -> Path | None:
        """The run directory that belongs to the demo as it stands; None before there is one."""
        entry = self.state["finished"].get(name) or self.state["begun"].get(name) or {"old": []}
        mine = [n for n in self.run_dirs(name) if n not in entry["old"]]
        return self.out / ("ldm" if name == "ldm" else "runs") / mine[-1] if mine else None

    def can_resume(self, name: str) -> bool:
        """Whether the run has a snapshot to continue from."""
        folder = self.run_dir(name)
        return folder is not None and any(folder.glob("network-snapshot-??????.pkl"))

    def relative(self, name: str, file: str = "") -> str:
        """The run directory of a training step, or a file in it: ``snapshot`` = its newest snapshot."""
        folder = self.run_dir(name)
        assert folder is not None, name
        if file == "snapshot":
            file = max(p.name for p in folder.glob("network-snapshot-??????.pkl"))
        return self.path(*folder.relative_to(self.out).parts, *([file] if file else []))

    # Steps.

    def _steps(self) -> list[Step]:
        n, m = self.images, self.minutes
        names = f"fid{n}_full,kid{n}_full,fid{self.heldout}_full"
        source = {file: content_hash(ROOT / "demo" / file) for file in ("earth_64.zip", "earth_64_split.json")}
        measure = {"images": n}
        return [
            Step("data", source, (), 0.1, lambda _: [self._convert("train", "earth.zip"),
                                                     self._convert("test", "earth-heldout.zip")],
                 (self.out / "earth.zip", self.out / "earth-heldout.zip")),
            Step("train", {"minutes": m["train"]}, ("data",), m["train"] + 0.6, lambda on: [self._train("train", on)],
                 trains=True),
            Step("control", {"minutes": m["control"]}, ("data",), m["control"] + 0.4,
                 lambda on: [self._train("control", on)], trains=True),
            Step("ldm", {"minutes": m["ldm"]}, ("train",), m["ldm"] + 0.2, lambda on: [self._train("ldm", on)],
                 trains=True),
            Step("samples", {}, ("ldm",), 0.3, lambda _: [
                self._generate("ldm", self.relative("ldm", "best_model.pkl")),
                self._generate("ref", self.path("earth-heldout.zip"))],
                 (self.out / "samples-ldm.png", self.out / "samples-ref.png")),
            Step("metrics", measure, ("ldm",), 2.5, lambda _: [
                self._measure("ldm", "train", names, self.relative("ldm", "best_model.pkl")),
                self._measure("ref", "train", f"{names},retrieval", self.path("earth.zip"))],
                 (self.out / "metrics" / "ldm", self.out / "metrics" / "ref")),
            Step("retrieval", {}, ("control",), 0.5, lambda _: [
                self._measure("ref", "control", "retrieval", self.path("earth.zip"))],
                 (self.out / "metrics" / "control",)),
            Step("scale", {}, ("data",), 0.8, lambda _: [
                ["demo/noise.py", "--outdir", self.path("noise")],
                self._compare("heldout", self.path("earth-heldout.zip"), f"kid{self.heldout}_full", None),
                self._compare("noise", self.path("noise"), "kid256_full", self.path("earth-heldout.zip"))],
                 (self.out / "metrics" / "heldout", self.out / "metrics" / "noise")),
        ]

    def _convert(self, key: str, dest: str) -> Command:
        return ["dataset_tool.py", "--source", "demo/earth_64.zip", "--include", f"demo/earth_64_split.json:{key}",
                "--dest", self.path(dest), "--force"]

    def _train(self, name: str, resume: bool) -> Command:
        script, minutes = TRAINERS[name], ["--minutes", f"{self.minutes[name]:g}"]
        # The preset's length in images would end a long demo before its time is up.
        if name != "ldm" and self.minutes[name] > 30:
            minutes += ["--kimg", f"{self.minutes[name] * 6:.0f}"]
        if resume:
            return [script, "--resume", self.relative(name), *minutes]
        data = ["--data", self.path("earth.zip")]
        if name == "ldm":
            network = self.relative("train", "snapshot")
            return [script, "--network", network, *data, "--outdir", self.path("ldm"), *minutes]
        control = ["--encoder", "constant", "--sigma", "0.7", "--desc", "control"] if name == "control" else []
        return [script, "--outdir", self.path("runs"), *data, "--cfg", "dicgan_demo", *control, *minutes]

    def _generate(self, kind: str, conditions: str) -> Command:
        network = self.relative("train", "snapshot")
        return ["gen_images.py", "--network", network, f"--{kind}", conditions, "--seeds", "0-63",
                "--outdir", self.path(f"samples-{kind}"), "--grid", self.path(f"samples-{kind}.png")]

    def _measure(self, kind: str, run: str, metrics: str, conditions: str) -> Command:
        return ["calc_metrics.py", "--network", self.relative(run, "snapshot"), f"--{kind}", conditions,
                "--metrics", metrics, "--heldout", self.path("earth-heldout.zip"),
                "--outdir", self.path("metrics", kind if run == "train" else run)]

    def _compare(self, name: str, images: str, kid: str, heldout: str | None) -> Command:
        metrics = f"fid{self.heldout}_full,{kid}"
        return ["calc_metrics.py", "compare", images, self.path("earth.zip"), "--metrics", metrics,
                *(["--heldout", heldout] if heldout else []), "--outdir", self.path("metrics", name)]

    def report_command(self) -> Command:
        """The report over everything that is there."""
        rows = {"ldm": "DIC-GAN, new latents (--ldm)", "ref": "DIC-GAN, training images as references (--ref)",
                "control": "Control, f constant (--ref)", "heldout": "Real held-out images", "noise": "Uniform noise"}
        files = [argument for name, title in rows.items()
                 for file in sorted((self.out / "metrics" / name).glob("metric-*.jsonl"))
                 for argument in ("--metrics", f"{title}={self.path('metrics', name, file.name)}")]
        return ["-m", "training.report", "--run", self.relative("train"), "--control", self.relative("control"),
                "--ldm", self.relative("ldm"),
                "--grid", f"New latents from the latent diffusion model (--ldm)={self.path('samples-ldm.png')}",
                "--grid", f"Latents of held-out images (--ref)={self.path('samples-ref.png')}",
                "--references", self.path("earth-heldout.zip"), "--ref-samples", self.path("samples-ref"), *files,
                "--commands", self.path("commands.txt"), "--out", self.path("report.html")]

    def save(self) -> None:
        """Writes demo.json."""
        with atomic_write(self.out / "demo.json") as file:
            file.write(json.dumps(self.state, indent=1).encode())
