"""The files around the code agree with each other."""

from __future__ import annotations

import re

from conftest import ROOT


def requirements() -> list[str]:
    return (ROOT / "requirements.txt").read_text().split()


def test_environment_has_the_pinned_requirements() -> None:
    text = (ROOT / "environment.yml").read_text()
    assert re.findall(r"^ {6}- (\S+)$", text, flags=re.MULTILINE) == requirements()
    assert all("==" in line for line in requirements())


def test_ci_and_readme_name_the_two_commands() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    train = "python train.py --outdir runs --data flowers.zip --cfg dicgan --sigma 0.3"
    for command in ("make demo", "make test", train):
        assert command in readme


def test_every_requirement_is_imported() -> None:
    names = {"torch", "torchvision", "timm", "click", "numpy", "pillow", "psutil", "tqdm", "tensorboard", "lmdb",
             "safetensors", "faiss-cpu", "scikit-learn"}
    modules = {"pillow": "PIL", "faiss-cpu": "faiss", "scikit-learn": "sklearn"}
    code = "\n".join(path.read_text() for path in ROOT.rglob("*.py") if ".venv" not in path.parts)
    for line in requirements():
        name = line.split("==")[0]
        if name in names:
            assert re.search(rf"(import|from) {modules.get(name, name)}\b|utils\.{name}", code), name
        else:  # weights, found by file
            assert name in code


def test_table_of_combinations_is_the_presets() -> None:
    from training.combinations import table

    assert table() in (ROOT / "docs/methods.md").read_text(encoding="utf-8")
