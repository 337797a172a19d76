"""Measure a trained network, or compare two image sets.

\b
Examples:
  python calc_metrics.py --metrics fid50k_full,kid50k --network runs/00000-…/network-snapshot-000200.pkl --ldm ldm.pkl
  python calc_metrics.py --metrics fid2k_full,retrieval --network net.pkl --ref photos/ --heldout test.zip
  python calc_metrics.py compare generated/ photos.zip --metrics fid_full,kid_full

\b
Metrics: fidNk_full, kidNk_full  N thousand images (or fid500_full) against all reals, no x-flips
         fid_full, kid_full      as many images as there are reals
         fidNk, kidNk            reals capped to the count, x-flips as in training
         retrieval               with --ref: is image i found from the sample made of it?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from dnnlib import UserError
from dnnlib.tuning import tune_process

SEEDS_PER_RUN = 1_000_000  # --seed S samples the image seeds S * 1,000,000 + 0, 1, 2, …


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags of both forms."""
    options = [
        click.option("--metrics", default="fid50k_full", show_default=True, metavar="NAMES", help="Comma-separated"),
        click.option("--detector", default="efficientnet_lite2", show_default=True,
                     help="efficientnet_lite2, or inception with --weights"),
        click.option("--weights", metavar="FILE", help="Weights of --detector inception"),
        click.option("--heldout", metavar="DIR|ZIP", help="Images that never trained: the bar for copying"),
        click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time"),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps"),
        click.option("--no-cache", is_flag=True, help="Compute the features of data sets anew and keep nothing"),
        click.option("--verbose", type=bool, default=True, show_default=True, metavar="BOOL", help="Show progress"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(help=__doc__, invoke_without_command=True)
@click.option("--network", metavar="PKL", help="Checkpoint of train.py  [required unless comparing]")
@click.option("--ldm", metavar="PKL", help="DIC-GAN: new latents, of ldm/train.py or ldm/sample.py")
@click.option("--ref", metavar="IMAGES", help="DIC-GAN: latents of reference images (file, folder or zip)")
@click.option("--data", metavar="ZIP|DIR", help="Real images  [default: the training set, as the checkpoint names it]")
@click.option("--mirror", type=bool, metavar="BOOL", help="Real x-flips in fidNk and copying  [default: as trained]")
@click.option("--class", "class_idx", type=int, help="Only this class of a class-conditional network")
@click.option("--sigma", type=float, help="Noise scale of h; default: as trained")
@click.option("--ldm-steps", type=click.IntRange(min=1), help="DDIM steps of --ldm  [default: 50]")
@click.option("--eta", type=float, help="DDIM stochasticity of --ldm, 0 .. 1  [default: 0]")
@click.option("--seed", type=click.IntRange(0, 4293), default=0, show_default=True, help="Random seed")
@click.option("--outdir", metavar="DIR", help="Where metric-NAME.jsonl go  [default: beside the network]")
@click.option("--gpus", type=int, default=1, show_default=True, help="Processes; 1 in this version")
@shared_options
@click.pass_context
def main(ctx: click.Context, **flags: Any) -> None:
    if ctx.invoked_subcommand is not None:
        given = [key for key in flags if ctx.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} stands before compare: write flags of compare after it; "
                            "it takes no --network and what belongs to one.")
        return
    if flags["gpus"] != 1:
        raise UserError(f"--gpus {flags['gpus']}: this version measures in one process; leave it out or say 1.")
    if not flags["network"]:
        raise UserError("--network is missing: give a network-snapshot-*.pkl of train.py, or use the form "
                        "calc_metrics.py compare A B for two image sets.")
    measure_network(**flags)


@main.command()
@click.argument("images", metavar="A")
@click.argument("reals", metavar="B")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of KID's subsets")
@click.option("--outdir", metavar="DIR", help="Where metric-NAME.jsonl go  [default: nowhere]")
@shared_options
def compare(images: str, reals: str, outdir: str | None, metrics: str, seed: int, batch: int, heldout: str | None,
            verbose: bool, no_cache: bool, **flags: Any) -> None:
    """Measure the images in A (judged) against those in B (real): folders or zips, of any image sizes."""
    from dnnlib.images import open_source
    from metrics.image_sets import describe, from_source
    from metrics.registry import evaluate

    detector = open_detector(metrics, **flags)
    judged, against = from_source(open_source(images)), from_source(open_source(reals))
    records = evaluate(metrics, judged, against, detector=detector, heldout=open_heldout(heldout), seed=seed,
                       cache=open_cache(no_cache), batch_size=batch, progress=progress(verbose),
                       provenance={"snapshot_pkl": None, "images": describe(judged)})
    show(records, outdir)


def measure_network(network: str, outdir: str | None, metrics: str, detector: str, weights: str | None, device: str,
                    data: str | None, mirror: bool | None, seed: int, batch: int, heldout: str | None, verbose: bool,
                    no_cache: bool, ref: str | None, gpus: int, **flags: Any) -> None:
    """The first form: samples of a checkpoint against its data set."""
    from metrics.detectors import check_detector, check_not_own
    from metrics.image_sets import from_dataset
    from metrics.names import parse_metrics
    from metrics.registry import evaluate
    from torch_utils.device import select_device
    from training.sampling import load_gan

    check_detector(detector, weights)
    kinds = {metric.kind for metric in parse_metrics(metrics)}
    gan = load_gan(network, select_device(device))
    check_not_own(detector, gan.config["D"]["backbone"])
    dataset, notes = open_data(gan, data)
    sampler, source = open_conditions(gan, dataset, ref=ref, **flags)
    reals = from_dataset(dataset, gan.dataset["mirror"] if mirror is None else mirror)
    if flags["class_idx"] is not None:
        notes.append(f"generated images are of class {flags['class_idx']} only, real ones of all classes")
    refs = open_references(ref, gan, seed) if ref and "retrieval" in kinds else None
    records = evaluate(
        metrics, fakes_of(sampler, seed, batch), reals, detector=open_detector(metrics, detector, weights, device),
        heldout=open_heldout(heldout), refs=refs, cache=open_cache(no_cache), seed=seed, batch_size=batch,
        progress=progress(verbose), notes=notes,
        provenance={"snapshot_pkl": Path(network).name, "network_hash": gan.hash,
                    "cur_nimg": gan.progress["cur_nimg"], "conditions": source},
    )
    show(records, outdir or str(Path(network).parent))


def open_data(gan: Any, path: str | None) -> tuple[Any, list[str]]:
    """The data set to measure against, and what has to be said about it."""
    from training.dataset import ImageDataset

    trained = gan.dataset
    if path is None and not Path(trained["path"]).exists():
        raise UserError(f"{gan.path} was trained on {trained['path']}, which is not there any more; name its new place "
                        "with --data.")
    labels = bool(gan.config["G"]["c_dim"])
    dataset = ImageDataset(path or trained["path"], use_labels=labels, max_images=trained["max_images"])
    if dataset.fingerprint == trained["fingerprint"]:
        return dataset, []
    if path is None:
        raise UserError(f"{trained['path']} has changed since {gan.path} was trained on it; put the former set back, "
                        f"or say --data {trained['path']} to measure against what is there now.")
    if trained["max_images"] is not None:  # another set counts as a whole
        dataset = ImageDataset(path, use_labels=labels)
    return dataset, [f"{dataset.name} is not what the network was trained on ({trained['name']}): copying is "
                     f"sought in {dataset.name} only"]


def open_conditions(gan: Any, dataset: Any, *, ldm: str | None, ref: str | None, class_idx: int | None,
                    sigma: float | None, ldm_steps: int | None, eta: float | None) -> tuple[Any, dict[str, Any]]:
    """A sampler with its conditions, and their provenance with content hashes."""
    from dnnlib import content_hash
    from ldm.latents import open_latents
    from training.sampling import open_sampler

    if ldm is None and (ldm_steps is not None or eta is not None):
        raise UserError("--ldm-steps and --eta belong to --ldm; give --ldm FILE or leave them out.")
    latents, source = None, {}
    if ldm is not None and gan.uses_latents:
        latents = open_latents(ldm, gan.hash, gan.device, steps=ldm_steps, eta=eta)
        source["ldm_sha256"] = content_hash(ldm)
    labels = None
    if gan.config["G"]["c_dim"] and class_idx is None:
        labels = reference_labels(ref) if ref else dataset.labels.tolist()
    sampler = open_sampler(gan, latents=latents, latents_path=ldm, ref=ref, class_idx=class_idx, labels=labels,
                           sigma=sigma)
    if ref is not None:
        source["ref_fingerprint"] = set_fingerprint(ref)
    return sampler, {**sampler.provenance, **source}


def reference_labels(ref: str) -> list[int]:
    """Classes of reference images, from the dataset.json beside them."""
    from dnnlib.images import open_source
    from dnnlib.labels import read_labels

    labels = None
    if not _is_picture(ref):
        with open_source(ref) as source:
            labels = read_labels(source.json(), source.names, ref)
            if labels is not None:
                return [labels[name] for name in source.names]
    raise UserError(f"--ref {ref}: these images have no class labels and the network needs them; give --class K, or a "
                    "set that dataset_tool.py --labels made.")


def set_fingerprint(ref: str) -> str:
    """Identity of the content of an image file, folder or zip."""
    from dnnlib import content_hash
    from dnnlib.images import open_source
    from metrics.image_sets import from_source

    if _is_picture(ref):
        return content_hash(ref)
    with open_source(ref) as source:
        return from_source(source).fingerprint


def _is_picture(path: str) -> bool:
    from dnnlib.images import is_image_name

    return Path(path).is_file() and is_image_name(Path(path).name)


def open_references(ref: str, gan: Any, seed: int) -> Any:
    """The reference images as the encoder saw them, and which of them each sample was made from."""
    from metrics.image_sets import from_tensor
    from metrics.registry import References
    from training.sampling import read_references

    images = read_references(ref, gan.config["G"]["img_resolution"])
    return References(from_tensor(images, ref), lambda k: (seed * SEEDS_PER_RUN + k) % len(images))


def fakes_of(sampler: Any, seed: int, batch: int) -> Callable[[int], Iterable[Any]]:
    """Number of images to batches of them, a seed per image."""
    from ldm.latents import FileSource

    def fakes(count: int) -> Iterable[Any]:
        seeds = range(seed * SEEDS_PER_RUN, seed * SEEDS_PER_RUN + count)
        if isinstance(sampler.latents, FileSource):
            sampler.latents(seeds)  # says what is missing before any image is made
        return sampler.images(seeds, batch)

    return fakes


def open_detector(metrics: str, detector: str, weights: str | None, device: str) -> Any:
    """The detector, once the metrics' names are known to be right."""
    from metrics.detectors import load_detector
    from metrics.names import parse_metrics
    from torch_utils.device import select_device

    parse_metrics(metrics)
    return load_detector(detector, weights, select_device(device))


def open_heldout(path: str | None) -> Any:
    """The images of ``--heldout``, or None."""
    if path is None:
        return None
    from dnnlib.images import open_source
    from metrics.image_sets import from_source

    return from_source(open_source(path))


def open_cache(off: bool) -> Any:
    """Where features of data sets are kept between runs."""
    from metrics.features import FeatureCache

    return FeatureCache(None if off else FeatureCache.default_folder(), lambda line: click.echo(line, err=True))


def progress(verbose: bool) -> Callable[[Iterable[Any], int, str], Iterator[Any]]:
    """A progress bar with ETA around batches of images, on terminals."""

    def track(batches: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit="img", disable=None if verbose else True) as bar:
            for images in batches:
                yield images
                bar.update(min(len(images), total - bar.n))

    return track


def show(records: list[dict[str, Any]], folder: str | None) -> None:
    """Prints the results, then stores them: what was measured is not lost on a full disk."""
    from metrics.registry import write_records
    from metrics.table import format_table

    click.echo(format_table(records))
    if folder is not None:
        paths = write_records(records, folder)
        click.echo(f"Stored in {', '.join(map(str, paths))}")


if __name__ == "__main__":
    tune_process()
    main()
