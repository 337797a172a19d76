"""Signs of life between processes: one that is gone ends the others, whatever they are waiting for."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

import torch.distributed as dist

PERIOD = 5.0  # seconds between two beats
MISSED = 6  # beats of one's own without one of another process, after which that one is taken for dead


class Heartbeat:
    """Counts up in the group's store while it is entered, and watches the counts of the others.

    A process that waits for a lost one would never return from NCCL and, if a whole machine has vanished, from gloo
    after minutes only. Here it exits with code 1 and one line within a minute. What is counted is beats, not time: a
    group that was suspended as a whole goes on.
    """

    def __init__(self, store: dist.Store, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Heartbeat:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.thread.join()

    def _run(self) -> None:
        last, missed = [0] * self.world, [0] * self.world
        while not self.stopped.wait(PERIOD):
            # A store on a machine that has vanished doesn't answer at all.
            alarm = threading.Timer(PERIOD * MISSED, self._end, ["the one that keeps their store"])
            alarm.daemon = True
            alarm.start()
            try:
                counts = [self.store.add(f"beat/{i}", int(i == self.rank)) for i in range(self.world)]
            except RuntimeError:
                if not self.stopped.is_set():
                    self._end("the one that keeps their store")
                return
            finally:
                alarm.cancel()
            for i, count in enumerate(counts):
                missed[i] = missed[i] + 1 if count == last[i] else 0
                if missed[i] >= MISSED:
                    self._end(str(i))
            last = counts

    def _end(self, who: str) -> NoReturn:
        """Ends the process at once: its main thread may never come back from where it waits."""
        sys.stderr.write(f"Error: of {self.world} processes, {who} doesn't answer any more: it was killed, or its "
                         "machine is gone. Training continues from its newest snapshot with --resume.\n")
        sys.stderr.flush()
        os._exit(1)
