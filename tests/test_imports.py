"""Arrows between packages point one way, and ``--help`` answers without heavy imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT, run_script

ALLOWED = {
    "dnnlib": {"dnnlib"},
    "torch_utils": {"dnnlib", "torch_utils"},
    "pg_modules": {"dnnlib", "torch_utils", "pg_modules"},
    "training": {"dnnlib", "torch_utils", "pg_modules", "training"},
    "metrics": {"dnnlib", "torch_utils", "metrics", "pg_modules.backbones"},
    "ldm": {"dnnlib", "torch_utils", "ldm", "pg_modules.backbones", "pg_modules.kernels", "pg_modules.perceptual",
            "pg_modules.winograd_kernels"},
}
PACKAGES = set(ALLOWED)
# Entry points in a package, like the scripts at the top.
ENTRY_POINTS = {"ldm/train.py", "ldm/sample.py"}
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at any depth of it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_allowed(module: str, allowed: set[str]) -> bool:
    """Whether a dotted name lies in one of the allowed packages or modules."""
    return any(module == name or module.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_arrows_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        allowed = ALLOWED[package] | ({"training"} if str(path.relative_to(ROOT)) in ENTRY_POINTS else set())
        for module in imported_modules(path):
            if module.split(".")[0] in PACKAGES:
                assert is_allowed(module, allowed), f"{path.relative_to(ROOT)} imports {module}"


def test_nothing_imports_a_script() -> None:
    stems = {Path(name).stem for name in SCRIPTS}
    for path in [ROOT / name for name in SCRIPTS] + [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")]:
        for module in imported_modules(path):
            assert module.split(".")[0] not in stems, f"{path.relative_to(ROOT)} imports the script {module}"


def test_a_reversed_arrow_is_seen(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("def f():\n    from training import loss\n")
    assert not any(is_allowed(m, ALLOWED["pg_modules"]) for m in imported_modules(tmp_path / "wrong.py"))


@pytest.mark.parametrize("name", [*SCRIPTS, "ldm/train.py", "ldm/sample.py"])
def test_help_needs_no_heavy_imports(name: str) -> None:
    """Asserted by what is loaded, not by the clock: torch, numpy and PIL stay out of ``--help``."""
    code = ("import runpy, sys\nsys.argv = [sys.argv[1], '--help']\n"
            "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as end:\n    assert not end.code\n"
            "print('LOADED', [m for m in ('torch', 'numpy', 'PIL', 'timm', 'scipy') if m in sys.modules])")
    done = run_script("-c", code, ROOT / name)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout
