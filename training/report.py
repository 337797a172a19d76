"""Write one self-contained HTML page about a run: samples, curves, metrics with their provenance.

\b
Examples:
  python -m training.report --run runs/00000-dicgan-flowers-gpus1-batch64 --out report.html
  python -m training.report --run RUN --control CONTROL --ldm LDM_RUN --grid "New latents=ldm.png" \\
      --metrics "From --ldm=metrics/metric-fid2k_full.jsonl" --out report.html
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

import click

from dnnlib import UserError, atomic_write
from training.report_curves import curves_section
from training.report_data import RunFiles, images_seen, read_metrics, read_run, split_title, training_time
from training.report_metrics import brief, quality, retrieval
from training.report_parts import data_url, facts, figure, load_picture, missing, number, section
from training.report_style import PAGE, STYLE

PAIRS, STRIP = 24, 8  # reference pairs and pictures of progress that are shown


@click.command(help=__doc__)
@click.option("--run", "run_dir", metavar="RUN_DIR", help="Run directory of train.py  [required]")
@click.option("--control", metavar="RUN_DIR", help="Run with --encoder constant, to compare retrieval with")
@click.option("--ldm", metavar="RUN_DIR", help="Run directory of ldm/train.py")
@click.option("--grid", "grids", multiple=True, metavar="TITLE=PNG", help="A picture of samples; may be repeated")
@click.option("--references", metavar="IMAGES", help="Reference images; with --ref-samples, shown beside their samples")
@click.option("--ref-samples", metavar="DIR", help="seed0000.png, … that gen_images.py --ref made of --references")
@click.option("--metrics", "metric_files", multiple=True, metavar="[TITLE=]JSONL",
              help="metric-NAME.jsonl of calc_metrics.py; may be repeated, equal titles make one row")
@click.option("--commands", metavar="TXT", help="The commands that made all this, one per line")
@click.option("--out", metavar="HTML", default="report.html", show_default=True, help="File to write")
def main(run_dir: str | None, control: str | None, ldm: str | None, grids: tuple[str, ...], references: str | None,
         ref_samples: str | None, metric_files: tuple[str, ...], commands: str | None, out: str) -> None:
    if not run_dir:
        raise UserError("--run is missing: give a run directory of train.py, for example runs/00000-dicgan-flowers-….")
    if bool(references) != bool(ref_samples):
        raise UserError("--references and --ref-samples belong together: the images and the samples made of them.")
    run = read_run(run_dir, "--run")
    constant = read_run(control, "--control") if control else None
    latent = read_run(ldm, "--ldm") if ldm else None
    rows = read_metrics(metric_files)
    body = "\n".join([
        brief(rows),
        section("about", "What this is", about(run, latent)),
        section("samples", "Samples", samples(grids) + pairs(references, ref_samples)),
        section("reals", "Training images", reals(run)),
        section("progress", "How it learned to draw", progress(run),
                "Samples of the same seeds and conditions, from the untrained network to the last snapshot."),
        curves_section(run, constant, latent),
        section("quality", "Quality and copying", quality(rows)),
        section("condition", "Does the generator use its condition?", retrieval(rows, constant)),
        section("commands", "Commands", commands_block(commands)),
        section("versions", "Versions", versions(run)),
    ])
    data = run.options.get("data", {})
    page = PAGE.format(
        title=escape(f"{run.options.get('cfg')} on {data.get('name')}"), style=STYLE, kicker="Training report",
        heading=escape(f"{run.options.get('cfg')} on {data.get('name')}"), lead=escape(summary(run)), body=body,
        footer=escape(f"Written {time.strftime('%Y-%m-%d %H:%M')} from {run.path.name}."))
    with atomic_write(out) as file:
        file.write(page.encode())
    click.echo(f"Wrote {out}.")


def summary(run: RunFiles) -> str:
    """The sentence below the title."""
    data, seen = run.options.get("data", {}), images_seen(run)
    trained = f", after {number(round(seen))} images in {training_time(run)}" if seen else ""
    return f"A generator of {data.get('resolution')} × {data.get('resolution')} pictures, trained on " \
           f"{data.get('num_images')} images{trained}."


def about(run: RunFiles, latent: RunFiles | None) -> str:
    """Preset, data set, images seen, time, device and what the latents are."""
    options, data = run.options, run.options.get("data", {})
    encoder = (options.get("G") or {}).get("encoder") or {}
    seen, sigma = images_seen(run), run.state.get("sigma")
    return facts([
        ("Preset", options.get("cfg")),
        ("Data set", f"{data.get('name')}: {data.get('num_images')} images, {data.get('resolution')} px"
                     + (", with x-flips" if data.get("mirror") else "")),
        ("Images seen", number(round(seen)) if seen is not None else None),
        ("Training time", training_time(run)),
        ("Device", run.logged("Device")),
        ("Batch", (options.get("run") or {}).get("batch")),
        ("Form of f", re.sub(r"Encoder$", "", str(encoder.get("class_name", "")).rpartition(".")[2]).lower()),
        ("Latent", " × ".join(map(str, encoder.get("latent_shape", [])))),
        ("σ", number(sigma) if sigma is not None and encoder else None),
        ("Latent diffusion", f"{latent.options.get('cfg')}, {training_time(latent) or 'no time recorded'}"
         if latent else None),
        ("Data set fingerprint", str(data.get("fingerprint", ""))[:16]),
    ])


def samples(grids: Sequence[str]) -> str:
    """The grids of ``--grid``."""
    if not grids:
        return missing("No grid of samples was given (--grid TITLE=PNG).")
    figures = []
    for option in grids:
        title, path = split_title(option)
        figures.append(figure(load_picture(path), title or path.stem))
    return f'<div class="two">{"".join(figures)}</div>'


def pairs(references: str | None, ref_samples: str | None) -> str:
    """Each reference beside the sample that was drawn with its latent."""
    if references is None or ref_samples is None:
        return ""
    from PIL import Image, ImageOps

    from dnnlib.images import decode, open_source

    cells = []
    with open_source(references) as source:
        drawn = [k for k in range(len(source.names)) if (Path(ref_samples) / f"seed{k:04d}.png").is_file()]
        if len(drawn) > PAIRS:  # evenly spaced: sorted names often keep one kind of picture together
            drawn = [drawn[round(i * (len(drawn) - 1) / (PAIRS - 1))] for i in range(PAIRS)]
        for index in drawn:
            name, sample = source.names[index], load_picture(Path(ref_samples) / f"seed{index:04d}.png")
            reference = Image.fromarray(decode(source.read(name), name))
            reference = ImageOps.fit(reference, sample.size, Image.Resampling.LANCZOS)  # as gen_images.py --ref does
            cells.append(f'<li><img alt="reference {index}" src="{data_url(reference)}">'
                         f'<img alt="sample of reference {index}" src="{data_url(sample)}"></li>')
    if not cells:
        raise UserError(f"--ref-samples {ref_samples}: no seed0000.png there; make it with gen_images.py --ref "
                        f"{references} --seeds 0-{PAIRS - 1} --outdir {ref_samples}.")
    return ("<h3>References and samples</h3><p>Left: a reference image from "
            f"<code>{escape(Path(references).name)}</code>. Right: a sample with its diffused latent. A sample should "
            f'share the kind of picture, not the pixels.</p><ul class="pairs">{"".join(cells)}</ul>')


def reals(run: RunFiles) -> str:
    """``reals.png`` of the run."""
    path = run.path / "reals.png"
    if not path.is_file():
        return missing("The run directory has no reals.png.")
    return f'<div class="two">{figure(load_picture(path), "A random choice of the training images")}</div>'


def progress(run: RunFiles) -> str:
    """A strip of ``fakes*.png``, cut to four by four images."""
    found = sorted(run.path.glob("fakes??????.png"))
    paths = [p for p in [run.path / "fakes_init.png"] if p.is_file()] + found
    if not paths:
        return missing("The run directory has no fakes*.png yet.")
    if len(paths) > STRIP:
        paths = [paths[round(i * (len(paths) - 1) / (STRIP - 1))] for i in range(STRIP)]
    side = 4 * int(run.options.get("data", {}).get("resolution", 64))
    figures = []
    for path in paths:
        picture = load_picture(path)
        kimg = re.fullmatch(r"fakes(\d{6})", path.stem)
        caption = "Untrained"
        if kimg:
            caption = f"{int(kimg[1])} thousand images" if int(kimg[1]) else "Less than a thousand images"
        figures.append(figure(picture.crop((0, 0, min(side, picture.width), min(side, picture.height))), caption))
    return f'<div class="strip">{"".join(figures)}</div>'


def commands_block(path: str | None) -> str:
    """The lines of ``--commands``."""
    if path is None:
        return missing("The commands were not recorded (--commands FILE).")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--commands {path}: cannot be read as text ({error}).") from error
    return f"<pre>{escape(text.strip())}</pre>"


def versions(run: RunFiles) -> str:
    """What the newest snapshot was written with, and what this page was written with."""
    names = ("torch", "torchvision", "timm", "numpy", "pillow")
    here = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
    then = run.state.get("versions") or {}
    text = "" if then else missing("The run directory has no snapshot, so what it was trained with is not known.")
    return (text + facts([(f"{name}, at the newest snapshot", value) for name, value in then.items()])
            + facts([(f"{name}, now", value) for name, value in here.items()]))


if __name__ == "__main__":
    main()
