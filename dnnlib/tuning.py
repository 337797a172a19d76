"""Process settings that decide over speed on small CPUs; called by the scripts before torch is imported."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def tune_process() -> None:
    """Threads that wait spin only briefly before they sleep, and freed memory stays with the process.

    OpenMP barriers that spin for long slow a run many times as soon as a neighbour takes a core; ones that
    sleep at once (``OMP_WAIT_POLICY=PASSIVE``) cost a third of a quiet machine's speed. Handing every freed
    activation back to the system costs a page fault per 4 KiB when the next step takes it again.
    What the user has set in the environment stays. Where the C library isn't glibc, only threads are set.
    """
    assert "torch" not in sys.modules, "OpenMP reads its settings when torch is loaded"
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)
        library.mallopt(_M_ARENA_MAX, 1)  # the backward pass has a thread of its own; it shares the pool
