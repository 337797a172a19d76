"""What a run leaves behind besides snapshots: stats.jsonl, TensorBoard, log lines, grids of pictures."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from dnnlib import UserError, format_bytes, format_time
from dnnlib.util import write_error
from pg_modules import kernels
from torch_utils.device import device_description
from torch_utils.rng import generator
from torch_utils.run_folder import claimed, forget_later
from torch_utils.stats import JsonLines
from training.dataset import ImageDataset
from training.diagnostics import Diagnostics, collapse_warning
from training.run_state import RunState, image_shape
from training.sampling import Sampler, encode, grid, live_gan
from training.skipping import Drawn

GRID = 64  # images of reals.png and fakes*.png


class RunLog:
    """Writes the files of a run directory; on resume, lines after the snapshot are dropped first."""

    def __init__(self, run_dir: Path, run: RunState, dataset: ImageDataset) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run_dir, self.run, self.dataset = run_dir, run, dataset
        nimg = run.progress["cur_nimg"]
        self.stats = JsonLines(run_dir / "stats.jsonl", keep_lines=run.progress["cur_tick"])
        self.board = SummaryWriter(str(run_dir), purge_step=nimg + 1 if nimg else None)
        order = torch.randperm(dataset.num_images, generator=generator(run.config["run"]["seed"], "grid"))
        self.grid_indices = order[:GRID].tolist()
        self.since, self.warned = time.monotonic(), False

    def begin(self) -> None:
        """Grid of reals and of the untrained generator, for new runs."""
        if self.run.progress["cur_nimg"] == 0:
            save_grid(self.run_dir / "reals.png", torch.stack([self.dataset[i][0] for i in self._grid()]))
            self.fakes("fakes_init.png")
        self.since = time.monotonic()
        self.since_nimg = self.run.progress["cur_nimg"]

    def fakes(self, name: str | None = None) -> None:
        """Grid of G_ema's samples: for the images (or classes) of ``reals.png`` where G is conditioned."""
        f, grid = None, self._grid()
        if self.run.conditioning.uses_latents:
            f = encode(self.run.G_ema.encoder, self.dataset, grid, self.run.device)
        labels = self.run.conditioning.labels_of(self.dataset)
        sampler = Sampler(live_gan(self.run, "this run"), references=f,
                          labels=None if labels is None else [labels[i] for i in grid])
        images = torch.cat(list(sampler.images(range(len(grid)), 16)))
        save_grid(self.run_dir / (name or f"fakes{self.run.progress['cur_nimg'] // 1000:06d}.png"), images)

    def _grid(self) -> list[int]:
        """The images of the grids, without those that can't be read any more; `UserError` if none can."""
        problems = [Drawn(self.dataset)[i, i, 0][-1] for i in self.grid_indices]
        if all(problems):
            raise UserError(f"{problems[0]} Nor can others be read. Put the data set back, then use --resume.")
        return [i for i, problem in zip(self.grid_indices, problems, strict=True) if not problem]

    def tick(self, diagnostics: Diagnostics | None) -> None:
        """One line of stats.jsonl, TensorBoard scalars and a line for people; closes the tick."""
        run, progress = self.run, self.run.progress
        seconds, nimg = time.monotonic() - self.since, progress["cur_nimg"] - self.since_nimg
        if diagnostics is not None:
            values = diagnostics.measure(live_gan(run, "this run"), run.config["run"]["seed"])
            for name, value in values.items():
                run.collector.report(name, value)
            warning = collapse_warning(values, run.config["G"]["encoder"]["class_name"])
            if warning and not self.warned:
                tqdm.write(warning)
                self.warned = True
        progress["cur_tick"] += 1
        progress["tick_start_nimg"] = progress["cur_nimg"]
        record: dict[str, Any] = dict(run.collector.pop())
        for name, entry in record.items():
            self.board.add_scalar(name, entry["mean"], progress["cur_nimg"])
        rate = nimg / max(seconds, 1e-9)
        memory = psutil.Process().memory_info().rss
        timing = {"Timing/img_per_sec": rate, "Timing/total_sec": progress["seconds"], "Resources/rss_bytes": memory}
        for name, value in timing.items():
            self.board.add_scalar(name, value, progress["cur_nimg"])
        self.board.flush()
        back = {"Progress/rollbacks": progress["rollbacks"]} if progress["rollbacks"] else {}
        self.stats.append({"Progress/tick": progress["cur_tick"], "Progress/kimg": progress["cur_nimg"] / 1000,
                           **back, **record, **timing})
        tqdm.write(self._line(record, rate, memory))
        self.since, self.since_nimg = time.monotonic(), progress["cur_nimg"]

    def _line(self, record: dict[str, Any], rate: float, memory: int) -> str:
        run, progress = self.run, self.run.progress
        opts = run.config["run"]
        left = (opts["kimg"] * 1000 - progress["cur_nimg"]) / max(rate, 1e-9)
        if opts["minutes"]:
            left = min(left, opts["minutes"] * 60 - progress["seconds"])
        line = (f"tick {progress['cur_tick']:<4d} kimg {progress['cur_nimg'] / 1000:<8.1f} "
                f"time {format_time(progress['seconds']):<8s} left {format_time(max(left, 0)):<8s} img/s {rate:<6.1f} "
                f"mem {format_bytes(memory)} G {record['Loss/G/loss']['mean']:+.2f} "
                f"D {record['Loss/scores/real']['mean']:+.2f}/{record['Loss/scores/fake']['mean']:+.2f}")
        shown = {"Latent/perplexity": "f: perplexity {:.1f}", "Latent/effective_rank": "f: rank {:.1f}",
                 "Latent/retrieval_rank": "retrieval {:.0f}", "Latent/retrieval_chance": "of chance {:.0f}",
                 "DNoise/T": "T {:.0f}", "ADA/p": "p {:.3f}"}
        line += "".join(f" | {text.format(record[key]['mean'])}" for key, text in shown.items() if key in record)
        return line

    def metrics(self, values: dict[str, float]) -> None:
        """TensorBoard scalars and a line for the metrics of a snapshot."""
        for name, value in values.items():
            self.board.add_scalar(f"Metrics/{name}", value, self.run.progress["cur_nimg"])
        tqdm.write("metrics " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def close(self) -> None:
        """Flushes TensorBoard."""
        self.board.close()


def save_grid(path: Path, images: torch.Tensor, columns: int = 8) -> None:
    """uint8 [n, C, H, W] as one PNG."""
    from PIL import Image

    from dnnlib import atomic_write

    with atomic_write(path) as file:
        picture = grid(images, columns)
        Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(file, format="png")


def _about_kernels(device: torch.device) -> str:
    """On a CPU, whether there are compiled kernels (`pg_modules.kernels`)."""
    if device.type != "cpu":
        return ""
    reason = kernels.missing()
    return f", float32 slower without C kernels ({reason})" if reason else ", float32 with C kernels"


def describe(run: RunState) -> str:
    """Lines about networks and machine for the head of the log."""
    def count(net: torch.nn.Module) -> str:
        return f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M"

    data, encoder = run.config["data"], run.config["G"]["encoder"]
    channels, height, width = image_shape(run.config)
    lines = [
        f"Data:    {data['path']}, {data['num_images']} images, {width}x{height} px{' grey' if channels == 1 else ''}"
        f"{', x-flips' if data['mirror'] else ''}{', labels' if data['use_labels'] else ''}",
        f"G:       {run.config['G']['class_name']}, {count(run.G)} parameters",
        f"D:       {run.config['D']['class_name']}, {count(run.D)} parameters (frozen network not counted)",
        f"Device:  {device_description(run.device)}, amp {run.config['loss']['amp']}{_about_kernels(run.device)}",
    ]
    if encoder:
        lines.insert(2, f"f:       {encoder['class_name']}, latent {'x'.join(map(str, run.G.encoder.latent_shape))}")
    if run.config["conditioning"]["class_name"] != "training.conditioning.base.Conditioning":
        shown = {key: value for key, value in run.config["conditioning"].items() if key != "encoder"}
        lines.insert(3, f"Method:  {json.dumps(shown)}")
    return "\n".join(lines)


@contextlib.contextmanager
def opened(run_dir: Path, state: dict[str, Any] | None) -> Iterator[None]:
    """The run directory for this process alone, with everything printed copied to its ``log.txt``.

    state: the checkpoint that the run goes on from, or None; what was logged after it is dropped.
    """
    with claimed(run_dir):
        if state is not None:
            forget_later(run_dir, state["progress"])
        with Tee(run_dir / "log.txt"):
            yield


class Tee:
    """Copies what is printed to a file, by appending, while it is entered."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Tee:
        try:
            self.file = open(self.path, "a", encoding="utf-8")
        except OSError as error:
            raise write_error(self.path, error) from error
        self.stdout = sys.stdout
        sys.stdout = self  # type: ignore[assignment]
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        sys.stdout = self.stdout
        with contextlib.suppress(OSError):  # on a full disk the error itself is what matters
            if error is not None:
                self.file.write(f"{type(error).__name__}: {getattr(error, 'message', error)}\n")
            self.file.close()

    def write(self, text: str) -> int:
        """Writes to both."""
        self.stdout.write(text)
        try:
            self.file.write(text)
            self.file.flush()
        except OSError as error:
            raise write_error(self.path, error) from error
        return len(text)

    def flush(self) -> None:
        """Flushes both."""
        self.stdout.flush()
        self.file.flush()
