"""``--gpus N``: the same command N times on this machine, as torchrun would start it; and what torchrun has begun."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from dnnlib import UserError
from dnnlib.cli import end_on_sigterm, signals_to

INTERRUPTED = 3  # exit code of a process that wrote its state and stopped
TELL, GRACE = 2.0, 15.0  # seconds after a failure until the other processes are asked to end, and are killed
LAUNCH = "launch.txt"  # in run directories


def wants_launch(gpus: int | None) -> bool:
    """Whether ``--gpus`` asks for processes that aren't there yet; `UserError` if torchrun has started others."""
    there = os.environ.get("WORLD_SIZE")
    if there is None or gpus is None:
        return gpus is not None and gpus > 1
    if int(there) != gpus:
        raise UserError(f"--gpus {gpus}: {there} process(es) have been started already (WORLD_SIZE); leave --gpus out.")
    return False


def together(gpus: int | None, device: str, work: Callable[[Any], None]) -> None:
    """`work`, with the device of the process, in all of those that ``--gpus`` asks for or that torchrun has started."""
    if wants_launch(gpus):
        assert gpus is not None
        sys.exit(launch_local(gpus, device))
    from torch_utils.distributed import joined

    end_on_sigterm()
    with joined(device) as own:
        work(own)


def launch_local(count: int, device: str) -> int:
    """Runs this command in `count` processes and returns its exit code; ends all of them if one fails.

    `UserError` if `device` isn't the CPU and there are fewer GPUs. Signals are handed on.
    """
    import torch

    if device != "cpu" and torch.cuda.device_count() < count:
        raise UserError(f"--gpus {count}: this machine has {torch.cuda.device_count()} CUDA device(s); give a smaller "
                        f"number, or --device cpu for {count} processes on its cores.")
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
              "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))}
    common["TORCH_CPP_LOG_LEVEL"] = os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")  # no traces of a lost store
    if "lo" in (name for _, name in socket.if_nameindex()):
        common["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    # A session of their own: Ctrl-C in the terminal reaches them once, through here.
    processes = [subprocess.Popen([sys.executable, *sys.orig_argv[1:]], start_new_session=True,
                                  env={**os.environ, **common, "RANK": str(i), "LOCAL_RANK": str(i)})
                 for i in range(count)]
    with _handed_on(processes):
        return _watch(processes)


@contextlib.contextmanager
def _handed_on(processes: Sequence[subprocess.Popen]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to `processes`."""
    def handle(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    with signals_to(handle):
        yield


def _watch(processes: Sequence[subprocess.Popen]) -> int:
    """Waits for the end of all; the exit code of the command."""
    failed_at, measures = math.inf, [(TELL, subprocess.Popen.terminate), (GRACE, subprocess.Popen.kill)]
    while any(process.poll() is None for process in processes):
        if failed_at == math.inf and (failed := _failures(processes)):
            failed_at = time.monotonic()
            number, code = failed[0]
            if code < 0:
                sys.stderr.write(f"Error: process {number} of {len(processes)} was killed by signal {-code}; the "
                                 "others are stopped. Training continues from its newest snapshot with --resume.\n")
        if measures and time.monotonic() - failed_at > measures[0][0]:
            _, measure = measures.pop(0)
            for process in processes:
                measure(process)
        time.sleep(0.05)
    codes = [process.returncode for process in processes]
    if _failures(processes):
        return 2 if 2 in codes else 1
    return INTERRUPTED if INTERRUPTED in codes else 0


def _failures(processes: Sequence[subprocess.Popen]) -> list[tuple[int, int]]:
    """(number, exit code) of those that have failed."""
    codes = [process.poll() for process in processes]
    return [(i, code) for i, code in enumerate(codes) if code not in (None, 0, INTERRUPTED)]


# torchrun --max-restarts.

def _launch_name() -> str | None:
    """What tells the torchrun command that started this process from all others; None without torchrun."""
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    if given is None:
        return None
    if given != "none":  # --rdzv-id, or a random one with --standalone
        return given
    agent = psutil.Process(os.getppid())
    return f"{socket.gethostname()}-{agent.pid}-{agent.create_time()}"


def sign_run(run_dir: Path) -> None:
    """Notes in a new run directory which torchrun command began it."""
    if name := _launch_name():
        (run_dir / LAUNCH).write_text(name + "\n", encoding="utf-8")


def begun_run(outdir: Path) -> Path | None:
    """The run directory with a snapshot that this torchrun command made before it restarted its processes.

    None at the first start, and if it hadn't come to a snapshot.
    """
    name = _launch_name()
    if name is None or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    signed = sorted(outdir.glob(f"*/{LAUNCH}")) if outdir.is_dir() else []
    own = [path.parent for path in signed if path.read_text(encoding="utf-8").strip() == name]
    return own[-1] if own and any(own[-1].glob("network-snapshot-*.pkl")) else None
