"""C sources compiled for this machine's CPU by its own compiler, once, and loaded."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-Wall", "-Wextra")
SECONDS = 120  # that a compiler may take


class NoLibrary(Exception):
    """C can't be compiled here; the text says why."""


def _cpu() -> str:
    """What ``-march=native`` may depend on: a home folder can belong to several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def load(source: Path, folder: Path) -> ctypes.CDLL:
    """The library made of `source` and what lies beside it, in `folder` after the first time.

    The compiler is ``$CC``, or cc, gcc or clang. A library is written in whole or not at all, and made anew when a
    source, the compiler or the CPU is another one. Raises `NoLibrary`.
    """
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise NoLibrary(f"no C compiler: {', '.join(names)} not found")
    known = hashlib.sha256()
    for path in sorted(source.parent.glob("*.[ch]")):
        known.update(path.read_bytes())
    version = _run([compiler, "--version"])
    known.update("\0".join([*FLAGS, version, _cpu()]).encode())
    library = folder / f"{source.stem}-{known.hexdigest()[:20]}.so"
    try:
        if not library.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as new:
                made = Path(new) / library.name
                _run([compiler, *FLAGS, str(source), "-o", str(made)])
                made.replace(library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NoLibrary(f"{library}: {error}") from error


def _run(command: list[str]) -> str:
    """What a command printed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoLibrary(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NoLibrary(f"{command[0]}: {next((line for line in lines if 'error' in line), lines[0])}")
    return done.stdout
