"""The process in which hostile files are opened: bounded in time and memory, and watched.

Reads nothing but its arguments; writes a line before each file and one after it, so that a crash can be laid at the
door of the file that caused it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnlib import UserError

if TYPE_CHECKING:
    from fuzz.kinds import Kind, Sample

CPU_SECONDS = 10  # for one file; the slowest sound one takes a tenth of a second
# What no reader of files may do, as `sys.addaudithook` reports it.
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "pty.spawn", "subprocess.Popen",
             "socket.", "urllib.", "webbrowser.", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod",
             "os.link", "os.symlink", "shutil.", "ctypes.dlopen")
CANARY_MODULE = "antigravity"  # of the standard library; hostile files ask for it


class Hang(BaseException):
    """Too much time for one file; no reader's ``except Exception`` holds it back."""


class Watch:
    """Takes note of forbidden acts, new imports from outside of the project, and files opened for writing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.active = str(folder), list[str](), False
        self.known: set[str] = set()
        sys.addaudithook(self.hear)

    def start(self) -> None:
        """From now on."""
        # A part of the project that is imported late brings modules of the standard library.
        loaded = {name.partition(".")[0] for name in sys.modules}
        self.known = loaded | {"training", "metrics"} | sys.stdlib_module_names
        self.seen, self.active = [], True

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit hook."""
        if not self.active:
            return
        writes = event == "open" and isinstance(args[1], str) and any(c in args[1] for c in "wax+")
        top = str(args[0]).partition(".")[0] if args else ""
        foreign = event == "import" and (top not in self.known or top == CANARY_MODULE)
        if foreign or (writes and not str(args[0]).startswith(self.folder)) or (
                event.startswith(FORBIDDEN) and not str(args[0]).startswith(self.folder)):
            self.seen.append(f"{event} {str(args[:1])[:100]}")


def cases(name: str, mode: str, start: int, count: int, seed: int, canary: str) -> Iterator[tuple[str, Sample]]:
    """The files to be opened with their titles, in their order."""
    from fuzz.kinds import KINDS, Sample, attack_samples

    if mode == "attacks":
        yield from attack_samples(name, canary)[start:]
        return
    kind = KINDS[name]
    sound = kind.samples()
    for index in range(start, count):
        rng = random.Random(f"{seed} {name} {index}")
        sample = sound[rng.randrange(len(sound))]
        yield f"number {index}", Sample(sample.name, kind.mutate(sample, rng))


def outcome(kind: Kind, path: Path, watch: Watch) -> tuple[str, str]:
    """What becomes of a file: one word, and the message or the place."""
    def expire(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, expire)
    watch.start()
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    found, detail, chain = "accepted", "", None
    try:
        kind.open(path)
    except UserError as error:
        found, detail, chain = "refused", error.message, error
        if "\n" in detail or not detail.strip():
            found = "traceback"
    except Hang:
        found, detail = "hang", traceback.format_exc(limit=-3)
    except MemoryError as error:
        found, detail, chain = "memory", traceback.format_exc(limit=-3), error
    except Exception as error:
        found, detail, chain = "traceback", traceback.format_exc(limit=-4), error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        watch.active = False
    while chain is not None:
        if isinstance(chain, MemoryError) or "allocate memory" in str(chain):
            found, detail = "memory", f"{detail} <- {chain!r}"
        chain = chain.__cause__ or chain.__context__
    return ("executed", "; ".join(watch.seen)) if watch.seen else (found, detail)


def bound_memory(megabytes: int) -> None:
    """From now on this process may grow by so much address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def resident() -> int:
    """KiB of memory that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def say(**fields: Any) -> None:
    """A line for the process that waits."""
    print(json.dumps(fields), flush=True)


def work(name: str, mode: str, start: int, count: int, seed: int, keep: str, watch: Watch) -> None:
    """Opens the files `start` to `count` of a kind; those that do what none may do are kept in a folder."""
    from fuzz.kinds import KINDS

    kind, folder = KINDS[name], Path(watch.folder)
    for sample in kind.samples():  # whatever is imported late is imported now
        (folder / sample.name).write_bytes(sample.data)
        kind.open(folder / sample.name)
    canary = f"{folder}-canary"
    files = cases(name, mode, start, count, seed, canary)
    say(job=[name, mode], before=resident())
    for index, (title, sample) in enumerate(files, start):
        path = folder / sample.name
        path.write_bytes(sample.data)
        say(start=index, title=title)
        if sys.platform == "linux":
            bound_memory(kind.memory)
        began = time.process_time()
        found, detail = outcome(kind, path, watch)
        seconds = time.process_time() - began
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if Path(canary).exists():
            os.unlink(canary)
            found, detail = "executed", "the canary was touched"
        if keep and found not in ("accepted", "refused"):
            (Path(keep) / f"{name}-{mode}-{index}-{sample.name}").write_bytes(sample.data)
        say(index=index, outcome=found, detail=detail[-1500:], seconds=seconds, memory=resident())
    say(finished=[name, mode])


def main(jobs: list[list[Any]], seed: int, keep: str) -> None:
    """jobs: kind, mode, number of the first file, and of the one behind the last."""
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    Image.init()  # Pillow's plugins, which it would import at the first odd file
    with tempfile.TemporaryDirectory() as place:
        watch = Watch(Path(place).resolve())
        for job in jobs:
            work(*job, seed, keep, watch)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
