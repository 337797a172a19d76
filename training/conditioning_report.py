"""What condition.py leaves behind: pictures, curves and the table of results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dnnlib import atomic_write
from torch_utils import checkpoint
from training.labelled_grid import GridRow, labelled_grid
from training.line_chart import Chart, draw_charts
from training.loader import to_uint8
from training.logs import save_grid
from training.report_parts import Line

POINTS = 200  # of a curve that are drawn
Curves = dict[str, torch.Tensor]  # prior -> losses [n, updates]


def save_samples(folder: Path, seeds: Sequence[int], img: torch.Tensor) -> None:
    """Images ``[n, C, H, W]`` in [-1, 1] as ``folder/seedNNNN.png``."""
    for seed, image in zip(seeds, to_uint8(img), strict=True):
        save_grid(folder / f"seed{seed:04d}.png", image[None], 1)


def save_frames(path: Path, frames: torch.Tensor) -> None:
    """States on the way ``[rows, frames, C, H, W]`` in [-1, 1], from the start on the left to the end."""
    save_grid(path, to_uint8(frames.flatten(0, 1)), frames.shape[1])


def save_latents(path: Path, latents: torch.Tensor, seeds: Sequence[int], about: dict[str, Any], mode: str,
                 settings: dict[str, Any]) -> None:
    """A file for ``gen_images.py --ldm``, from which the same seeds give the same images.

    about: what results say about the run. mode: how the latents were found. settings: as of sampled latents.
    """
    told = about["class"]
    checkpoint.save(path, "latents", {
        "latents": latents, "seeds": list(seeds), "gan_hash": about["network_hash"], "network": about["network"],
        "space": "f" if about["space"] == "h" else about["space"], "labels": None if told is None else [told],
        "ldm": about.get("ldm", ""), "ldm_hash": about.get("ldm_hash", ""), "settings": settings,
        "provenance": {"mode": mode}})


def save_comparison(path: Path, columns: dict[str, torch.Tensor], seeds: Sequence[int]) -> None:
    """Columns of uint8 images ``[rows, C, H, W]`` by their headings, a row for each of `seeds`."""
    rows = [GridRow([f"seed {seed}"], [images[k] for images in columns.values()]) for k, seed in enumerate(seeds)]
    with atomic_write(path) as file:
        labelled_grid(list(columns), rows).save(file, format="png")


def write_curves(path: Path, task: Curves, prior: Curves) -> None:
    """A line per prior and task update: both losses, means over the samples."""
    lines = ["prior,update,task_loss,task_loss_std,prior_loss"]
    for name, losses in task.items():
        columns = (losses.mean(0), losses.std(0), prior[name].mean(0))
        lines += [",".join([name, str(i + 1), *(f"{float(value):.6g}" for value in values)])
                  for i, values in enumerate(zip(*columns, strict=True))]
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def draw_curves(path: Path, task: Curves, prior: Curves) -> None:
    """The same as two charts. The task's is of the loss in front of each update."""
    charts = [Chart("Task loss", [Line(name, points(losses)) for name, losses in task.items()])]
    pulled = {name: losses for name, losses in prior.items() if name != "none"}
    if pulled:
        charts.append(Chart("Prior loss", [Line(name, points(losses)) for name, losses in pulled.items()]))
    with atomic_write(path) as file:
        draw_charts(charts, "task updates").save(file, format="png")


def points(losses: torch.Tensor) -> list[tuple[float, float]]:
    """Means over samples of ``[n, updates]``, at most about `POINTS` of them, the last one included."""
    mean = losses.mean(0).tolist()
    stride = max(len(mean) // POINTS, 1)
    kept = sorted({*range(0, len(mean), stride), len(mean) - 1})
    return [(float(i + 1), mean[i]) for i in kept]


def write_results(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """``results.jsonl``, a line per prior."""
    with atomic_write(path) as file:
        for record in records:
            file.write((json.dumps(record, allow_nan=False) + "\n").encode())


def format_results(records: Sequence[dict[str, Any]]) -> str:
    """The table for people, a row per prior."""
    head = ("prior", "task loss", "diversity", "FD", "KID ×1000", "nearest ratio", "s/sample")
    rows = [head]
    for r in records:
        ratio = "–" if r["nearest_ratio"] is None else f"{r['nearest_ratio']:.2f}"
        within = "" if r["diversity_within"] is None else f" ({r['diversity_within']:.2f})"
        rows.append((r["prior"], f"{r['task_loss']:.4f} ± {r['task_loss_std']:.4f}", f"{r['diversity']:.2f}{within}",
                     f"{r['fd']:.1f}", f"{1000 * r['kid']:.1f}", ratio, f"{r['seconds'] / r['samples']:.2f}"))
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) if k == 0 else cell.rjust(w)
                               for k, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in rows)
