"""The training loop: batches, two optimizer steps, EMA; ticks, snapshots and a clean end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dnnlib import atomic_write, construct
from dnnlib.cli import stop_on_signal
from torch_utils import distributed, exchange
from torch_utils.ema import ema_beta, ema_update
from torch_utils.rng import generator
from torch_utils.shared_draws import shared_draws
from training.compilation import compile_parts
from training.conditioning.base import Batch
from training.dataset import ImageDataset
from training.diagnostics import Diagnostics
from training.estimates import print_estimate, resolve_batch_gpu
from training.loader import batches, default_workers, lost_workers, split
from training.logs import RunLog
from training.measured import Measured, collapses, is_due
from training.objective import Phase
from training.options import RunOptions
from training.rollback import NonFinite, roll_back
from training.run_state import RunState, frozen_networks, prune_snapshots, snapshot_path
from training.sampling import Gan, live_gan
from training.skipping import Substitutes
from training.update import take_step

Evaluate = Callable[[Gan, Path], Measured]


class Trainer:
    """One run of the loop over a `RunState`; `train` returns when the run is over or interrupted.

    Several processes go through it together, each with its share of every batch; process 0 alone writes.
    """

    def __init__(self, run: RunState, dataset: ImageDataset, run_dir: Path, evaluate: Evaluate | None) -> None:
        """evaluate: metrics of a snapshot, from outside so that training doesn't import metrics; None = no metrics.

        All processes ask it together and are told the same.
        """
        self.run, self.dataset, self.run_dir, self.evaluate = run, dataset, run_dir, evaluate
        self.options: RunOptions = construct(run.config["run"])
        self.weights = {net: [p for p in net.parameters() if p.requires_grad] for net in (run.G, run.D)}
        self.started = time.monotonic()
        self.seconds_before = float(run.progress["seconds"])
        self.last_snapshot = time.monotonic()
        self.log: RunLog | None = None  # of process 0, while it trains

    # One iteration.

    def _phase(self, phase: Phase, parts: list[Batch], rng: torch.Generator) -> None:
        """Accumulates the gradients of all micro-batches and steps, unless something isn't finite."""
        # Gradients into the other network's weights would be thrown away; those into its inputs are needed.
        own, other = (self.run.G, self.run.D) if phase.net == "G" else (self.run.D, self.run.G)
        optimizer = self.run.opt_G if phase.net == "G" else self.run.opt_D
        for parameter in self.weights[other]:
            parameter.requires_grad_(False)
        optimizer.zero_grad(set_to_none=True)
        scale = self.run.loss.scales.get(phase.net)
        factor, total = 1.0 if scale is None else scale.value, sum(len(part.img) for part in parts)
        losses: list[tuple[str, torch.Tensor]] = []
        start = rng.get_state()
        for number, part in enumerate(parts):
            rng.set_state(start)  # every part draws for all and takes its own, so that --batch-gpu changes no draw
            with shared_draws(rng, number, len(parts)):
                passes = phase.terms(part, rng)
            for terms in passes:
                for name, value in terms.log.items():
                    self.run.collector.report(name, value)
                losses.append((next(iter(terms.log)), terms.loss.detach()))
                (terms.loss * (factor * len(part.img) / total)).backward()
        for parameter in self.weights[other]:
            parameter.requires_grad_(True)
        gradients = [p.grad for p in self.weights[own] if p.grad is not None]
        if scale is not None:
            self.run.collector.report(f"Loss/{phase.net}/scale", scale.value)
        if problem := take_step(optimizer, gradients, losses, scale):
            self._stop_nonfinite(phase, problem)

    def _stop_nonfinite(self, phase: Phase, what: str) -> None:
        raise NonFinite(
            f"Training stopped at image {self.run.progress['cur_nimg']}: {what}. {phase.net} was not updated; "
            f"resume from the last snapshot in {self.run_dir}, or start anew with lower --glr and --dlr or --amp off."
        )

    def iteration(self, batch: Batch, batch_gpu: int) -> None:
        """The phases of the objective (G and f, then D), update of G_ema, adaptation: Eq. 5 for DIC-GAN."""
        run, opts, cur_nimg = self.run, self.options, self.run.progress["cur_nimg"]
        parts = split(batch, batch_gpu)
        for phase in run.loss.phases(cur_nimg // opts.batch):
            self._phase(phase, parts, generator(run.seed, phase.name, cur_nimg))
        run.progress["cur_nimg"] = cur_nimg + opts.batch
        ema_update(run.G_ema, run.G, ema_beta(opts.batch, cur_nimg + opts.batch, opts.ema_kimg, opts.ema_rampup))
        for name, value in run.loss.after_step(opts.batch).items():
            if distributed.rank() == 0:  # the same everywhere
                run.collector.report(name, value)
        run.conditioning.after_step(run, self.dataset)

    # The loop.

    def _over(self) -> bool:
        progress, opts = self.run.progress, self.options
        progress["seconds"] = self.seconds_before + time.monotonic() - self.started
        if opts.patience and progress["stale"] >= opts.patience:
            return True
        out_of_time = opts.minutes is not None and progress["seconds"] >= opts.minutes * 60
        return out_of_time or progress["cur_nimg"] >= opts.kimg * 1000

    def _what_now(self, stopped: Callable[[], bool]) -> tuple[bool, ...]:
        """Whether to end, and whether a snapshot is due by the clock of process 0; a signal to any process counts."""
        late = time.monotonic() - self.last_snapshot > self.options.snap_minutes * 60
        first = distributed.rank() == 0
        return distributed.any_true((first and self._over()) or stopped(), first and late)

    def _on_first(self, work: Callable[[RunLog], object]) -> None:
        """Process 0 does `work`, with the files of the run; then all have its progress."""
        def done() -> dict[str, Any]:
            assert self.log is not None
            work(self.log)
            return self.run.progress

        self.run.progress.update(distributed.from_first(done))

    def train(self) -> bool:
        """Trains until kimg or minutes are used up; False if interrupted before. The last state is always saved."""
        run, first = self.run, distributed.rank() == 0
        batch_gpu = resolve_batch_gpu(run)
        if self.options.compile:
            compile_parts(run.G)
        diagnostics = None
        if first and run.conditioning.uses_latents:
            diagnostics = Diagnostics.create(self.dataset, self.options.seed, run.device, frozen_networks(run.config))
        self.log = RunLog(self.run_dir, run, self.dataset) if first else None
        bar = tqdm(total=int(self.options.kimg * 1000), initial=run.progress["cur_nimg"], unit="img", unit_scale=True,
                   mininterval=1, dynamic_ncols=True, disable=None if first else True)
        try:
            with stop_on_signal() as stopped:
                self._on_first(lambda log: log.begin())
                if run.progress["unfinished"]:
                    self._finish_snapshot()
                self.started = time.monotonic()
                while not self._loop(stopped, batch_gpu, diagnostics, bar):
                    pass  # taken back to the newest snapshot
                interrupted, = distributed.any_true(stopped())
                self._snapshot(pictures=not interrupted)
                interrupted, = distributed.any_true(stopped())
                return not interrupted
        finally:
            bar.close()
            if self.log is not None:
                self.log.close()

    def _loop(self, stopped: Callable[[], bool], batch_gpu: int, diagnostics: Diagnostics | None, bar: tqdm) -> bool:
        """Trains to the end (True), or to something not finite after which the run was taken back (False)."""
        try:
            with lost_workers(self.dataset):
                self._steps(stopped, batch_gpu, diagnostics, bar)
            return True
        except NonFinite as error:
            self._over()  # takes the time
            roll_back(self.run, self.dataset, self.run_dir, error)
        assert self.log is not None
        self.log.close()
        self.log = RunLog(self.run_dir, self.run, self.dataset)
        self.log.begin()
        self.seconds_before, self.started = float(self.run.progress["seconds"]), time.monotonic()
        bar.n = self.run.progress["cur_nimg"]
        return False

    def _steps(self, stopped: Callable[[], bool], batch_gpu: int, diagnostics: Diagnostics | None, bar: tqdm) -> None:
        opts, progress, device = self.options, self.run.progress, self.run.device
        workers = opts.workers if isinstance(opts.workers, int) else default_workers(self.dataset.cached, device)
        substitutes = Substitutes(self.dataset, self.run.seed, self.run.conditioning.pair)
        data = batches(self.dataset, opts.batch, self.run.seed, progress["cur_nimg"], device, workers,
                       self.run.conditioning.pair, distributed.share(), substitutes)
        self.last_snapshot = began = time.monotonic()
        estimated = False
        end, _ = self._what_now(stopped)
        while not end:
            batch = next(data)
            self.run.collector.report("Data/skipped", substitutes.replaced)
            self.iteration(batch, batch_gpu)
            bar.update(opts.batch)
            if not estimated:
                print_estimate(opts, progress, time.monotonic() - began)
                estimated = True
            if progress["cur_nimg"] - progress["tick_start_nimg"] >= opts.tick * 1000:
                exchange.merge_statistics(self.run.collector)
                self._on_first(lambda log: log.tick(diagnostics))
                if progress["cur_tick"] % opts.snap == 0:
                    self._snapshot()
            end, late = self._what_now(stopped)
            if late:
                self._snapshot(pictures=False)

    def _snapshot(self, pictures: bool = True) -> None:
        """Saves the state; then pictures and metrics, which may take long and must not risk it."""
        exchange.merge_statistics(self.run.collector)
        exchange.check_same(self.run.G, self.run.D)
        self._on_first(lambda log: self._write_snapshot(pictures))
        if pictures:
            self._finish_snapshot()

    def _write_snapshot(self, pictures: bool) -> None:
        self.run.progress["unfinished"] = pictures
        self.run.save(snapshot_path(self.run_dir, self.run.progress["cur_nimg"]))
        prune_snapshots(self.run_dir, self.options.keep)
        self.last_snapshot = time.monotonic()

    def _finish_snapshot(self) -> None:
        """Pictures and metrics of the newest snapshot; a run that was killed meanwhile resumes here."""
        path = snapshot_path(self.run_dir, self.run.progress["cur_nimg"])
        self._on_first(self._draw)
        if self.evaluate is None or not is_due(self.run.progress, self.options.metrics_budget):
            return
        begun = time.monotonic()
        measured = self.evaluate(live_gan(self.run, path.name), path)
        seconds = time.monotonic() - begun
        self._on_first(lambda log: self._judge(log, path, measured, seconds))

    def _draw(self, log: RunLog) -> None:
        log.fakes()
        self.run.progress["unfinished"] = False

    def _judge(self, log: RunLog, path: Path, measured: Measured, seconds: float) -> None:
        """Logs the metrics of the snapshot `path`, which took `seconds`, and keeps the best one."""
        run, opts, progress = self.run, self.options, self.run.progress
        progress["measured_nimg"] = progress["cur_nimg"]
        progress["metric_seconds"] += seconds
        log.metrics(measured.values)
        for line in [*measured.warnings, *collapses(measured.values, progress)]:
            tqdm.write(f"Warning: {line}")
        progress["stale"] += 1
        if progress["best"] is None or measured.loss < progress["best"]:
            progress["best"], progress["best_nimg"], progress["stale"] = measured.loss, progress["cur_nimg"], 0
            run.save(self.run_dir / "best_model.pkl")
            with atomic_write(self.run_dir / "best_nimg.txt") as file:
                file.write(f"{progress['cur_nimg']}\n".encode())
        if opts.patience and progress["stale"] >= opts.patience:
            tqdm.write(f"--patience: the first metric is no better than {progress['stale']} evaluations ago; done.")
        run.save(path)  # so that a resumed run knows all this
