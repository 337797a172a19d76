"""Several processes that work together: how they join, decide, and come to a clear end when one is lost.

torchrun or `torch_utils.launch` start them and say by environment variables who is who. One process alone is in no
group; every function here, and in `torch_utils.exchange`, then hands back what it was given, so that one process is
the same code.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dnnlib import UserError
from torch_utils.device import select_device
from torch_utils.heartbeat import Heartbeat

T = TypeVar("T")
# What one process may be ahead of another inside of a step. A dead one is noticed by `Heartbeat`, much sooner.
PATIENCE = timedelta(minutes=10)


class Lost(UserError):
    """Another process of the group has failed or is gone; exit code 1, since it isn't this one's input."""

    exit_code = 1


@dataclass
class _Group:
    rank: int
    world: int
    store: dist.Store
    calls: int = 0  # of `from_first`


_group: _Group | None = None


def started() -> bool:
    """Whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """The number of this process; 0 writes files."""
    return 0 if _group is None else _group.rank


def world() -> int:
    """How many processes there are."""
    return 1 if _group is None else _group.world


def sharing(device: torch.device) -> int:
    """How many of the processes share the memory of `device`: those of this machine, if it is the CPU's."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" and _group is not None else 1


def share() -> slice:
    """The rows of a batch that are this process's: dealt out in turn.

    So groups of images at equal distances (`minibatch_std`) and the first part of a batch (path lengths) consist of
    the same images as in one process.
    """
    return slice(rank(), None, world())


# Joining and leaving.

@contextlib.contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """Joins the other processes, if there are any, and yields the device of this one by the flag ``--device``.

    Only process 0 prints to stdout. Its group ends with the block; a failure inside of it is told to the others, and
    what another process has already reported in the same words, Ctrl-C included, ends this one without a message.
    """
    global _group
    if not started():
        yield select_device(device)
        return
    own = _own_device(device)
    _group = group = _connect(own)
    try:
        with Heartbeat(group.store, group.rank, group.world), contextlib.ExitStack() as stack:
            if group.rank:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield own
            any_true(False)
        any_true(False)  # nobody leaves, and takes the store along, while another one still watches it
        dist.destroy_process_group()
    except BaseException as error:
        told = not isinstance(error, Lost) and _reported_elsewhere(group, error)
        if told and isinstance(error, UserError | KeyboardInterrupt):
            sys.exit(getattr(error, "exit_code", 1))
        raise
    finally:
        _group = None


def _own_device(name: str) -> torch.device:
    """A GPU for every process of a machine, or the CPU for all; `UserError` where there aren't as many."""
    if ":" in name:
        raise UserError(f"--device {name}: with several processes each takes a GPU of its own; say --device cuda.")
    device = select_device(name)
    local, here = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "mps":
        raise UserError("--device mps: several processes can't share it; use one, or --device cpu.")
    if device.type == "cpu":
        return device
    if max(local + 1, here) > torch.cuda.device_count():
        raise UserError(f"--device {name}: {max(local + 1, here)} processes on this machine, but it has "
                        f"{torch.cuda.device_count()} CUDA device(s); start as many processes, or say --device cpu.")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _connect(device: torch.device) -> _Group:
    """Joins the process group: gloo, and nccl beside it for tensors on GPUs."""
    # Default arguments there take the group of the moment of import. Later, they would keep it, and its threads, alive
    # after its end, and those may need Python when that is gone.
    importlib.import_module("torch.distributed.nn.functional")
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=PATIENCE))
        # A store may outlive a group that torchrun starts again.
        store = dist.PrefixStore(f"dicgan/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        store.set_timeout(PATIENCE)
        dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl", store=store, rank=number,
                                world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise Lost(f"The processes can't find each other at {os.environ.get('MASTER_ADDR')}:"
                   f"{os.environ.get('MASTER_PORT')} ({_first_line(error)}). Start them with torchrun or --gpus; on "
                   "several machines, name the network in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME.") from error
    return _Group(number, count, store)


@dataclass(frozen=True)
class _Failure:
    """What a process leaves word of when it fails: its number, its exit code, and why."""

    rank: int
    code: int
    words: str


def _failure() -> _Failure | None:
    """The first failure of a process, if any has left word of one."""
    assert _group is not None
    with contextlib.suppress(RuntimeError):
        if _group.store.check(["failed"]):
            number, code, words = _group.store.get("failed").decode().split("|", 2)
            return _Failure(int(number), int(code), words)
    return None


def _reported_elsewhere(group: _Group, error: BaseException) -> bool:
    """Leaves word of a failure if it is the first; True if another process has left the same words."""
    words = f"{getattr(error, 'message', error) or type(error).__name__}"
    with contextlib.suppress(RuntimeError):
        group.store.compare_set("failed", "", f"{group.rank}|{getattr(error, 'exit_code', 1)}|{words}")
    first = _failure()
    return first is not None and first.rank != group.rank and first.words == words


@contextlib.contextmanager
def contact() -> Iterator[None]:
    """Around every exchange: an error of the network is that a process is lost."""
    try:
        yield
    except RuntimeError as error:
        failure = _failure()
        reason = f"process {failure.rank} ended: {failure.words}" if failure else (
            f"it was killed, or its machine is gone ({_first_line(error)})")
        raise Lost(f"Process {rank()} of {world()} has lost contact with another one: {reason}. Training continues "
                   "from its newest snapshot with --resume.") from error


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S*\] ", "", line)[:120]  # without the place in PyTorch's source


def check_batch(batch: int, processes: int) -> None:
    """`UserError` unless `processes` can share a batch evenly."""
    if processes > 1 and (batch % processes or batch < 2 * processes):
        raise UserError(f"--batch {batch}: {processes} processes share every batch evenly and each takes 2 or more, so "
                        f"it must be {2 * processes} or a larger multiple of {processes}. Change --batch or --gpus.")


# Decisions.

def any_true(*flags: bool) -> tuple[bool, ...]:
    """Each of `flags`, or'ed over all processes."""
    if _group is None:
        return flags
    values = torch.tensor(flags, dtype=torch.int32)
    with contact():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return tuple(bool(value) for value in values)


def least(number: int) -> int:
    """The smallest `number` of all processes."""
    if _group is None:
        return number
    value = torch.tensor(number)
    with contact():
        dist.all_reduce(value, dist.ReduceOp.MIN)
    return int(value)


def from_first(work: Callable[[], T]) -> T:
    """What `work` returns on process 0, on every process; the others do nothing but wait, as long as it takes.

    If a process fails meanwhile, those that wait end without a message of their own.
    """
    if _group is None:
        return work()
    _group.calls += 1
    key = f"done/{_group.calls}"
    box: list[Any] = [work() if _group.rank == 0 else None]
    with contact():
        if _group.rank == 0:
            _group.store.set(key, "")
        while not _group.store.check([key]):  # a collective would wait for a limited time only
            if failure := _failure():
                sys.exit(failure.code)
            time.sleep(0.02)
        dist.broadcast_object_list(box, src=0)
    return box[0]
