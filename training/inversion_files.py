"""What an inversion is worth, and what it leaves behind: pictures, curves, latents, results.jsonl and a table."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib import atomic_write
from dnnlib.cli import format_seeds
from dnnlib.images import strip_extension
from torch_utils import checkpoint
from training.inversion import Inversion
from training.inversion_losses import Loss, mean_squared
from training.inversion_spaces import STORED, InversionSpace
from training.labelled_grid import GridRow, labelled_grid
from training.loader import to_float
from training.logs import save_grid

SHOWN = 16  # images in the comparison
LEAST_ERROR = 1e-10  # mean squared difference of which equal pictures have their PSNR, 106 dB
# Fields of a latent file that say how a diffusion model was sampled; here there is none.
SAMPLER_SETTINGS = ("sampler", "steps", "eta", "spacing", "corrections", "snr", "cfg_scale")
COLUMNS = ("start_mse", "mse", "psnr", "start_lite2", "lite2")


@torch.no_grad()
def compared(made: torch.Tensor, img_u8: torch.Tensor, judge: Loss | None, device: torch.device,
             batch_size: int = 32) -> dict[str, list[float]]:
    """Values of each of the pictures `made` beside `img_u8`, both uint8 ``[N, C, H, W]``, by name; on `device`.

    ``mse`` in [-1, 1]; ``psnr`` in dB; ``lite2``, the perceptual distance of the judge, only with one.
    """
    pairs = [(to_float(a.to(device)), to_float(b.to(device))) for a, b in
             zip(made.split(batch_size), img_u8.split(batch_size), strict=True)]
    error = torch.cat([mean_squared(b)(a) for a, b in pairs])
    values = {"mse": error.tolist(), "psnr": (10 * torch.log10(4 / error.clamp_min(LEAST_ERROR))).tolist()}
    if judge is not None:
        values["lite2"] = torch.cat([judge(b)(a) for a, b in pairs]).tolist()
    return values


def measured(result: Inversion, img_u8: torch.Tensor, judge: Loss | None,
             device: torch.device) -> dict[str, list[float]]:
    """`compared` for the best pictures, as they are stored, and with ``start_`` before each name for the first."""
    first = compared(result.first, img_u8, judge, device)
    return {**{f"start_{name}": column for name, column in first.items()},
            **compared(result.img, img_u8, judge, device)}


def flat(img_u8: torch.Tensor) -> torch.Tensor:
    """Each picture's mean colour all over: what a network with no idea of its content might settle for."""
    return img_u8.float().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8).expand_as(img_u8)


def make_record(space: InversionSpace, result: Inversion, values: dict[str, list[float]], names: Sequence[str],
                settings: dict[str, Any]) -> dict[str, Any]:
    """A JSON-ready record of one space: means over the images, those of each image, and what they were made with."""
    images = [{"name": name, "seed": seed, **{key: column[k] for key, column in values.items()}}
              for k, (name, seed) in enumerate(zip(names, result.seeds, strict=True))]
    return {"space": space.name, **{key: float(np.mean(column)) for key, column in values.items()},
            "seconds_per_image": result.seconds / len(images), "steps": len(result.losses) - 1,
            "network": space.gan.path, "network_hash": space.gan.hash, "sigma": space.edit.sigma,
            "class": space.edit.class_idx, **settings, "images": images}


def write_results(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """``results.jsonl``, a line per space."""
    with atomic_write(path) as file:
        for record in records:
            file.write((json.dumps(record, allow_nan=False) + "\n").encode())


def write_curves(path: Path, results: dict[str, Inversion]) -> None:
    """``curves.csv``: for each step of each space, mean and median loss of the images, and the mean of the best so far.
    """
    lines = ["space,step,mean,median,best_mean"]
    for name, result in results.items():
        best = result.losses.cummin(0).values
        for step, (now, lowest) in enumerate(zip(result.losses, best, strict=True)):
            lines.append(f"{name},{step},{now.mean():.6g},{now.median():.6g},{lowest.mean():.6g}")
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def write_pictures(folder: Path, names: Sequence[str], images: torch.Tensor) -> None:
    """uint8 ``[N, C, H, W]`` as ``folder/NAME``."""
    for name, img in zip(names, images, strict=True):
        save_grid(folder / name, img[None], 1)


def write_comparison(path: Path, img_u8: torch.Tensor, names: Sequence[str], results: dict[str, Inversion]) -> None:
    """One picture: a row per image, the first `SHOWN` of them: the image itself, and what each space came to."""
    columns = [img_u8, *(result.img for result in results.values())]
    rows = [GridRow([_short(name)], images) for name, *images in zip(names[:SHOWN], *columns, strict=False)]
    with atomic_write(path) as file:
        labelled_grid(["target", *results], rows).save(file, format="png")


def _short(name: str) -> str:
    """The end of a file name in ASCII, for a label."""
    return strip_extension(name).encode("ascii", "replace").decode()[-12:]


def write_latents(folder: Path, space: InversionSpace, result: Inversion) -> str:
    """The variables; returns the sentence that says what they are good for.

    Those that ``gen_images.py --ldm`` takes go to ``SPACE.pkl``, a latent file in which each image has its own seed;
    all others to ``SPACE.npz``, arrays by name.
    """
    if space.name not in STORED:
        path, buffer = folder / f"{space.name}.npz", io.BytesIO()
        arrays: dict[str, Any] = {name: value.numpy() for name, value in result.variables.items()}
        np.savez(buffer, seeds=np.array(result.seeds), **arrays)
        with atomic_write(path) as file:
            file.write(buffer.getvalue())
        return f"{path} (arrays {', '.join(['seeds', *result.variables])})"
    latents = result.variables["latents"]
    if STORED[space.name] == "f":
        latents = space.gan.G.encoder.normalize(latents)
    path, told = folder / f"{space.name}.pkl", space.edit.class_idx
    checkpoint.save(path, "latents", {
        "latents": latents, "seeds": result.seeds, "gan_hash": space.gan.hash, "space": STORED[space.name],
        "labels": None if told is None else [told], "network": space.gan.path, "ldm": "", "ldm_hash": "",
        "settings": {**dict.fromkeys(SAMPLER_SETTINGS), "class_idx": told},
        "provenance": {"mode": f"inversion in {space.name}"}})
    diffused, sigma = space.gan.diffused, ""
    if diffused is not None and space.edit.sigma != diffused.sigma:
        sigma = f" --sigma {space.edit.sigma}"
    label = "" if told is None else f" --class {told}"
    return (f"gen_images.py --network {space.gan.path} --ldm {path} --seeds {format_seeds(result.seeds)}{sigma}{label} "
            "--outdir DIR")


def table(records: Sequence[dict[str, Any]], flat_values: dict[str, list[float]]) -> str:
    """The means as text, a row per space, and those of the images' mean colours (`flat`)."""
    head = ("space", "steps", "MSE at start", "MSE", "PSNR", "Lite2 at start", "Lite2", "s/image")
    rows = [head]
    for r in records:
        cells = ["–" if key not in r else f"{r[key]:.2f}" if key == "psnr" else f"{r[key]:.4f}" for key in COLUMNS]
        rows.append((r["space"], str(r["steps"]), *cells, f"{r['seconds_per_image']:.2f}"))  # type: ignore[arg-type]
    bar = {name: float(np.mean(column)) for name, column in flat_values.items()}
    rows.append(("(mean colour)", "", "", f"{bar['mse']:.4f}", f"{bar['psnr']:.2f}", "",
                 f"{bar['lite2']:.4f}" if "lite2" in bar else "–", ""))
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) if k == 0 else cell.rjust(w)
                               for k, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in rows)
