"""Small disks and read-only ones: file systems in memory that a single process mounts for itself, on Linux."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from faults.harness import run

NEW_MOUNTS, NEW_USERS = 0x00020000, 0x10000000  # of unshare(2)
READ_ONLY, REMOUNT = 1, 32  # of mount(2)


def mount(folder: Path, flags: int = 0, size: int | None = None) -> None:
    """Mounts a file system of at most `size` bytes over `folder`, or changes its flags; OSError where it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size}".encode() if size else None
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), options):
        raise OSError(ctypes.get_errno(), "mount")


def own_mounts() -> None:
    """From here on mounts are this process's own, and allowed; OSError where the system doesn't have that."""
    ids = {"uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS | NEW_USERS):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in {"setgroups": "deny", **ids}.items():
        Path("/proc/self", name).write_text(text)


def contents(folder: Path) -> dict[str, bytes]:
    """All files by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def on_disk(main: Callable[[Sequence[str]], object], former: Path, free: int | None,
            check: Callable[[dict[str, bytes], dict[str, bytes]], object]) -> Callable[[Sequence[str]], None]:
    """`main`, with a disk mounted over the folder that its first argument names, on which the files of `former` are.

    free: bytes that are left there; None = it is read-only. check: is given all files before and after. For a process
    of its own (`faults.harness.run`).
    """
    def on_it(args: Sequence[str]) -> None:
        folder = Path(args[0])
        own_mounts()
        mount(folder, size=1 << 30)
        shutil.copytree(former, folder, dirs_exist_ok=True)
        before = contents(folder)
        used = shutil.disk_usage(folder).used
        mount(folder, REMOUNT | (READ_ONLY if free is None else 0), size=max(used + (free or 0), 4096))
        try:
            main(args[1:])
        finally:
            check(before, contents(folder))

    return on_it


def allowed(folder: Path) -> bool:
    """Whether a process may mount a disk of its own here."""
    def attempt(args: Sequence[str]) -> None:
        own_mounts()
        mount(folder, size=1 << 20)

    return run(attempt, [], folder / "mounts.txt", folder) == 0
