"""Statistics of a run: collected per step, written once per tick to ``stats.jsonl``."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

from dnnlib import atomic_write
from dnnlib.util import write_error

MOST_PENDING = 4096  # tensors that stay on the device before their values are asked for


class Collector:
    """Number, mean and standard deviation of every named value since the last `pop`.

    What is reported stays on its device until somebody wants to know, so that no step waits for it.
    """

    def __init__(self) -> None:
        self._moments: dict[str, list[float]] = {}
        self._pending: list[tuple[str, torch.Tensor]] = []

    def report(self, name: str, value: torch.Tensor | float) -> None:
        """Adds a scalar or all elements of a tensor, which nobody may change afterwards, under `name`."""
        given = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
        if given.numel():
            self._pending.append((name, given.flatten()))
        if len(self._pending) >= MOST_PENDING:
            self._settle()

    def _settle(self) -> None:
        """Adds what is pending to the moments, in one copy for every device."""
        parts = {device: torch.cat([values for _, values in self._pending if values.device == device]).cpu()
                 for device in {values.device for _, values in self._pending}}
        taken = dict.fromkeys(parts, 0)
        for name, tensor in self._pending:
            start = taken[tensor.device]
            taken[tensor.device] = start + len(tensor)
            values = parts[tensor.device][start:start + len(tensor)].double()  # on the CPU: MPS has no float64
            moments = self._moments.setdefault(name, [0.0, 0.0, 0.0])
            moments[0] += values.numel()
            moments[1] += values.sum().item()
            moments[2] += values.square().sum().item()
        self._pending = []

    def pop(self) -> dict[str, dict[str, float]]:
        """``{name: {"num", "mean", "std"}}`` in order of first report; starts over."""
        self._settle()
        result = {}
        for name, (num, total, squares) in self._moments.items():
            mean = total / num
            result[name] = {"num": int(num), "mean": mean, "std": math.sqrt(max(squares / num - mean * mean, 0.0))}
        self._moments = {}
        return result

    def state_dict(self) -> dict[str, list[float]]:
        """Moments so far, so that a run resumed within a tick reports the same numbers."""
        self._settle()
        return {name: list(moments) for name, moments in self._moments.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Takes over what `state_dict` returned."""
        self._moments, self._pending = {name: list(moments) for name, moments in state.items()}, []


class JsonLines:
    """An append-only ``.jsonl`` file that forgets, on resume, what was written after the snapshot."""

    def __init__(self, path: str | os.PathLike, keep_lines: int) -> None:
        self.path = Path(path)
        lines = self.path.read_bytes().splitlines(keepends=True)[:keep_lines] if self.path.exists() else []
        with atomic_write(self.path) as file:
            file.writelines(lines)

    def append(self, record: dict[str, Any]) -> None:
        """Writes one line, with the time; `UserError` if the disk is full."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({**record, "timestamp": time.time()}) + "\n")
        except OSError as error:
            raise write_error(self.path, error) from error
