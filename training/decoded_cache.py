"""Decoded images kept in memory, if they fit."""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from dnnlib import UserError, format_bytes
from torch_utils import distributed

MODES = ("auto", "on", "off")
PART = 4  # auto takes at most a quarter of the available memory, shared by the processes of a run on this machine
_LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")  # of a container; "max" where there is none


def available_bytes() -> int:
    """Memory that one of the run's processes on this machine may take, if all take the same."""
    available = psutil.virtual_memory().available
    limit = _LIMIT_FILE.read_text().strip() if _LIMIT_FILE.is_file() else "max"
    return min(available, int(limit) if limit.isdecimal() else available) // distributed.sharing(torch.device("cpu"))


class DecodedCache:
    """Decoded images, kept from their first use on in memory that forked loader workers share.

    The memory is anonymous (no file under /dev/shm, which containers keep small) and is only taken as it
    fills up. Spawned processes start with an empty cache of their own.
    """

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self.shape = (count, *shape)
        self._map()

    @classmethod
    def create(cls, mode: str, count: int, shape: tuple[int, int, int]) -> DecodedCache | None:
        """By ``--cache-images``: "on", "off", or "auto", on if `PART` allows. `UserError` if "on" can't be."""
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is none of {', '.join(MODES)}")
        size, available = count * math.prod(shape), available_bytes()
        if mode == "on" and size > available:
            raise UserError(f"--cache-images on: the decoded images take {format_bytes(size)}, and "
                            f"{format_bytes(available)} are free for them; use auto or off, or --max-images.")
        return cls(count, shape) if mode == "on" or (mode == "auto" and size <= available // PART) else None

    def _map(self) -> None:
        count = self.shape[0]
        self._images = np.frombuffer(mmap.mmap(-1, math.prod(self.shape)), np.uint8).reshape(self.shape)
        # Two workers may fill the same entry at once: both write the same bytes, then set its flag.
        self._filled = np.frombuffer(mmap.mmap(-1, count), np.uint8)

    def get(self, index: int) -> np.ndarray | None:
        """uint8 [channels, H, W], or None if it was not put yet."""
        return self._images[index] if self._filled[index] else None

    def put(self, index: int, image: np.ndarray) -> None:
        """Keeps an image."""
        self._images[index] = image
        self._filled[index] = 1

    def __getstate__(self) -> dict[str, Any]:
        return {"shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.shape = state["shape"]
        self._map()
