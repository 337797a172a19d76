"""What an import found and made, as text."""

from __future__ import annotations

from dnnlib import format_bytes
from training.official.build import training_flags
from training.official.snapshot import Import


def describe(result: Import, dest: str) -> str:
    """A table of the file's networks, what isn't as one might expect, and what can be done with `dest`."""
    size = format_bytes(result.path.stat().st_size)
    lines = [f"{result.path.name}, {size}, SHA-256 {result.sha256}", *_table(result)]
    lines += [f"Note: {note}." for note in result.notes]
    generator = result.generator
    data = f"unknown here ({result.trained_on} there)" if result.trained_on else "unknown"
    lines.append(f"Wrote {dest}: {result.config['cfg']}, {generator.resolution} px, {result.cur_nimg / 1000:g} kimg; "
                 f"its data set is {data}.")
    seeds = " --class 0" if generator.classes else ""
    lines.append(f"Images: python gen_images.py --network {dest} --seeds 0-15 --outdir out{seeds}")
    if result.discriminator:
        flags = training_flags(result.config, result.options, result.own)
        lines.append("Training: train.py has no flags for networks of these sizes, so that --init-from won't take them."
                     if flags is None else f"Training: python train.py --outdir runs --data SET.zip {' '.join(flags)} "
                     f"--init-from {dest}")
    return "\n".join(lines)


def _table(result: Import) -> list[str]:
    rows = [("network", "class", "resolution", "parameters", "z_dim", "classes", "imported")]
    for name, net in result.networks.items():
        imported = "no" if name in result.left_out else "yes"
        z_dim = "" if name == "D" else str(result.generator.options["z_dim"])
        rows.append((name, net.title, str(result.generator.resolution), f"{net.parameters:,}", z_dim,
                     str(result.generator.classes or "none"), imported))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) if 1 < k < 6 else cell.ljust(width)
                      for k, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
