"""Options of a run that don't belong to a network: how long, how often, how much at a time."""

from __future__ import annotations

from dataclasses import dataclass

from dnnlib import UserError
from training.decoded_cache import MODES

MAX_WORKERS = 256


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Validated on construction; every message names the flag."""

    batch: int  # images per optimizer step
    batch_gpu: int | str  # images per pass (gradients are accumulated), or auto = what fits the memory
    kimg: float  # length of the run in thousands of images
    minutes: float | None  # and in minutes of training over all sessions; None = no limit
    tick: float  # thousands of images between two lines of stats.jsonl
    snap: int  # ticks between two snapshots
    snap_minutes: float  # minutes after which a snapshot is due in any case
    keep: int  # newest snapshots kept; 0 = all
    metrics: str  # comma-separated names, or none
    metrics_budget: float | None = None  # most of the time that metrics may take, as a share; None = all snapshots
    patience: int = 0  # evaluations without a better first metric after which the run ends; 0 = never
    seed: int
    workers: int | str  # loader processes, or auto
    cache_images: str = "auto"  # decoded images in memory: auto | on | off
    on_nan: str = "stop"  # what to do if something isn't finite: stop | rollback to the newest snapshot
    nan_retries: int = 3  # most rollbacks of a run
    compile: bool = False  # parts of G
    ema_kimg: float  # half-life of G_ema in thousands of images
    ema_rampup: float | None  # at most this share of the images seen

    def __post_init__(self) -> None:
        positive = {"batch": self.batch, "kimg": self.kimg, "tick": self.tick, "snap": self.snap,
                    "snap-minutes": self.snap_minutes, "minutes": self.minutes or 1.0}
        for flag, value in positive.items():
            if not value > 0:
                raise UserError(f"--{flag} {value:g}: must be above 0.")
        if self.minutes is not None and not self.minutes > 0:
            raise UserError(f"--minutes {self.minutes:g}: must be above 0.")
        if self.batch < 2:
            raise UserError("--batch 1: batch normalisation needs at least 2 images per step.")
        if isinstance(self.batch_gpu, int) and (self.batch_gpu < 2 or self.batch % self.batch_gpu):
            raise UserError(f"--batch-gpu {self.batch_gpu}: must be at least 2 and divide --batch {self.batch}.")
        if self.metrics_budget is not None and not 0 < self.metrics_budget <= 1:
            raise UserError(f"--metrics-budget {self.metrics_budget:g}: give a share of the time, such as 10% or 0.1.")
        if self.patience < 0 or (self.patience and self.metrics == "none"):
            raise UserError(f"--patience {self.patience}: must not be negative, and needs --metrics to wait for.")
        if self.metrics_budget is not None and self.metrics == "none":
            raise UserError("--metrics-budget: there are no --metrics to limit; leave it out.")
        if self.keep < 0 or (isinstance(self.workers, int) and self.workers < 0):
            raise UserError("--keep and --workers must not be negative.")
        if self.cache_images not in MODES:
            raise UserError(f"--cache-images {self.cache_images}: choose one of {', '.join(MODES)}.")
        if self.on_nan not in ("stop", "rollback") or self.nan_retries < 1:
            raise UserError(f"--on-nan {self.on_nan} --nan-retries {self.nan_retries}: stop or rollback, 1 or more.")
        if isinstance(self.workers, int) and self.workers > MAX_WORKERS:
            raise UserError(f"--workers {self.workers}: at most {MAX_WORKERS} loader processes.")
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed {self.seed}: must be in 0 .. 2147483647.")
