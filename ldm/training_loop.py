"""The loop of latent diffusion training: ticks, statistics, snapshots and a clean end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from dnnlib import UserError, format_time
from ldm.copying import COPIES, nearest_ratio
from ldm.trainer import Trainer
from torch_utils import checkpoint, distributed, exchange
from torch_utils.run_folder import held_signals
from torch_utils.stats import JsonLines

BEST = "best_model.pkl"


def list_snapshots(run_dir: Path) -> list[Path]:
    """Snapshots of a run, oldest first."""
    return sorted(run_dir.glob("network-snapshot-??????.pkl"))


class Run:
    """A `Trainer` and its run directory: ticks, ``stats.jsonl``, snapshots, the end.

    pictures: writes a picture of samples under the path that it is given, at every snapshot; None = there are none.

    Several processes go through it together; process 0 alone writes.
    """

    def __init__(self, trainer: Trainer, run_dir: Path, pictures: Callable[[Path], None] | None = None) -> None:
        self.trainer, self.run_dir, self.pictures = trainer, run_dir, pictures
        self.first = distributed.rank() == 0
        if self.first:
            self.stats = JsonLines(run_dir / "stats.jsonl", keep_lines=trainer.progress["cur_tick"])
        self.seconds_before = float(trainer.progress["seconds"])
        self.started = self.since = time.monotonic()
        self.since_nimg = trainer.progress["cur_nimg"]
        self.best_written = self._best_on_disk() if self.first else -1
        self.nearest: float | None = None  # ratio of the last tick that was judged

    def train(self, stopped: Callable[[], bool]) -> bool:
        """Trains until kimg, minutes or patience are used up (True), or until `stopped()` (False), and saves the state.
        """
        trainer, config, progress = self.trainer, self.trainer.config, self.trainer.progress
        if progress["cur_nimg"] == 0 and trainer.best is None:
            tqdm.write(f"Held-out loss: {trainer.evaluate():.4f} untrained, {trainer.guess_loss:.4f} Gaussian guess")
        total = None if config["kimg"] is None else int(config["kimg"] * 1000)
        bar = tqdm(total=total, initial=progress["cur_nimg"], unit="latents", unit_scale=True, mininterval=1,
                   dynamic_ncols=True, disable=None if self.first else True)
        announced = False
        distributed.from_first(self._write_best)  # a run that was killed after its snapshot hadn't come to that
        if self._over():
            tqdm.write("This run is complete; give a larger --kimg or --minutes to go on.")
        over, interrupted = self._what_now(stopped)
        with bar:
            while not (over or interrupted):
                trainer.step()
                bar.update(config["batch"])
                if not announced and time.monotonic() - self.started > 2:
                    tqdm.write(f"{self._rate():.0f} latents/s, about {format_time(self._left())} to go")
                    announced = True
                if progress["cur_nimg"] - progress["tick_start_nimg"] >= config["tick"] * 1000:
                    self._tick()
                    if progress["cur_tick"] % config["snap"] == 0:
                        self.snapshot()
                over, interrupted = self._what_now(stopped)
        interrupted = interrupted and not over
        if not interrupted and progress["cur_nimg"] > progress["tick_start_nimg"]:
            self._tick()
        self.snapshot()
        return not interrupted

    def _what_now(self, stopped: Callable[[], bool]) -> tuple[bool, ...]:
        """Whether the run is over, by the clock of process 0, and whether any process was asked to stop."""
        return distributed.any_true(self.first and self._over(), stopped())

    def _over(self) -> bool:
        config, progress = self.trainer.config, self.trainer.progress
        progress["seconds"] = self.seconds_before + time.monotonic() - self.started
        out_of_time = config["minutes"] is not None and progress["seconds"] >= config["minutes"] * 60
        return out_of_time or self.stale() or (
            config["kimg"] is not None and progress["cur_nimg"] >= config["kimg"] * 1000)

    def stale(self) -> bool:
        """Whether the held-out loss has not fallen for ``patience`` ticks, as of the last tick."""
        config, best = self.trainer.config, self.trainer.best
        if config["patience"] is None or best is None:
            return False
        return self.trainer.progress["tick_start_nimg"] - best["cur_nimg"] >= config["patience"] * config["tick"] * 1000

    def verdict(self) -> str:
        """What there is to say about a finished run."""
        trainer, best = self.trainer, self.trainer.best
        assert best is not None
        lines = [f"Done: held-out loss {best['loss']:.4f} at {best['cur_nimg'] / 1000:.1f} kimg, Gaussian guess "
                 f"{trainer.guess_loss:.4f}."]
        if self.stale():
            lines.append(f"Stopped early: no lower held-out loss for {trainer.config['patience']} ticks.")
        lines.append(f"Use it with --ldm {self.run_dir / BEST}")
        if best["loss"] > (1 - 1e-4) * trainer.guess_loss:  # an untrained net equals it up to rounding
            lines.append("Warning: on held-out images the model never beat the Gaussian guess, so its samples are no "
                         "better than normal noise with the latents' mean and covariance. Train longer, or on more "
                         "images.")
        if self.nearest is not None and self.nearest < COPIES:
            lines.append(f"Warning: samples of the last weights lie {self.nearest:.2f} times as far from the nearest "
                         "training latent as held-out latents do: many are copies. Use the best weights, not the last.")
        return "\n".join(lines)

    def _rate(self) -> float:
        return (self.trainer.progress["cur_nimg"] - self.since_nimg) / max(time.monotonic() - self.since, 1e-9)

    def _left(self) -> float:
        """Seconds until the run is over."""
        config, progress = self.trainer.config, self.trainer.progress
        left = [math.inf]
        if config["kimg"] is not None:
            left.append((config["kimg"] * 1000 - progress["cur_nimg"]) / max(self._rate(), 1e-9))
        if config["minutes"] is not None:
            left.append(config["minutes"] * 60 - progress["seconds"])
        return max(min(left), 0.0)

    def _tick(self) -> None:
        """Closes a tick: held-out loss, a line of ``stats.jsonl``; with snapshots and at the end, copies are sought."""
        trainer, progress = self.trainer, self.trainer.progress
        rate, left = self._rate(), self._left()
        heldout = trainer.evaluate()
        progress["cur_tick"] += 1
        progress["tick_start_nimg"] = progress["cur_nimg"]
        exchange.merge_statistics(trainer.collector)
        distributed.from_first(lambda: self._write_tick(rate, left, heldout))
        self.since, self.since_nimg = time.monotonic(), progress["cur_nimg"]

    def _write_tick(self, rate: float, left: float, heldout: float) -> None:
        trainer, progress = self.trainer, self.trainer.progress
        assert trainer.best is not None
        trainer.collector.report("Loss/heldout", heldout)
        trainer.collector.report("Loss/gaussian_guess", trainer.guess_loss)
        judge = progress["cur_tick"] % trainer.config["snap"] == 0 or self._over()
        if judge:
            self.nearest = nearest_ratio(trainer)
            trainer.collector.report("Copy/nearest_ratio", self.nearest)
        record = trainer.collector.pop()
        self.stats.append({"Progress/tick": progress["cur_tick"], "Progress/kimg": progress["cur_nimg"] / 1000,
                           **record, "Timing/latents_per_sec": rate, "Timing/total_sec": progress["seconds"]})
        tqdm.write(
            f"tick {progress['cur_tick']:<4d} kimg {progress['cur_nimg'] / 1000:<8.1f} "
            f"time {format_time(progress['seconds']):<8s} left {format_time(left):<8s} latents/s {rate:<7.0f} "
            f"loss {record['Loss/train']['mean']:.4f} held-out {heldout:.4f} "
            f"(Gaussian guess {trainer.guess_loss:.4f}, best {trainer.best['loss']:.4f})"
            + (f" nearest {self.nearest:.2f}" if judge else "")
        )

    def _best_on_disk(self) -> int:
        """``cur_nimg`` of the best weights in the run directory; -1 without."""
        try:
            return checkpoint.load(self.run_dir / BEST, "ldm")["progress"]["cur_nimg"]
        except UserError:
            return -1

    def _write_best(self) -> None:
        best = self.trainer.best
        if best is not None and best["cur_nimg"] != self.best_written:
            checkpoint.save(self.run_dir / BEST, "ldm", self.trainer.best_state_dict())
            self.best_written = best["cur_nimg"]

    def snapshot(self) -> None:
        """Writes the state, the best weights if they are new, a picture, and drops the oldest snapshots."""
        exchange.merge_statistics(self.trainer.collector)
        exchange.check_same(self.trainer.net)
        distributed.from_first(self._write_snapshot)

    def _write_snapshot(self) -> None:
        trainer, keep = self.trainer, self.trainer.config["keep"]
        path = self.run_dir / f"network-snapshot-{trainer.progress['cur_nimg'] // 1000:06d}.pkl"
        with held_signals():
            checkpoint.save(path, "ldm", trainer.state_dict())
        self._write_best()
        if self.pictures is not None:
            self.pictures(self.run_dir / f"samples{trainer.progress['cur_nimg'] // 1000:06d}.png")
        for old in list_snapshots(self.run_dir)[:-keep] if keep else []:
            old.unlink(missing_ok=True)
