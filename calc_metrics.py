"""Measure a trained network, or compare two image sets.

\b
Examples:
  python calc_metrics.py --metrics fid50k_full,kid50k --network runs/00000-…/network-snapshot-000200.pkl --ldm ldm.pkl
  python calc_metrics.py --metrics fid2k_full,retrieval --network net.pkl --ref photos/ --heldout test.zip
  python calc_metrics.py compare generated/ photos.zip --metrics fid_full,kid_full,pr3_full --pairs pairs.png

\b
Metrics: fidNk_full, kidNk_full  N thousand images (or fid500_full) against all reals, no x-flips
         fid_full, kid_full      as many images as there are reals
         fidNk, kidNk            reals capped to the count, x-flips as in training
         fidinf…                 FID extrapolated to infinitely many images, in the same forms
         prNk3_full, dcNk5_full  precision and recall, density and coverage; pr500n3_full, pr3_full, prNk3
         isNk, diversityNk       Inception Score; mean distance between images, also within one condition
         retrieval               with --ref: is image i found from the sample made of it, and how near are the two?
         ivomN                   with --heldout: error of N held-out images after inversion (slow: 200 steps each)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from dnnlib import UserError
from dnnlib.tuning import tune_process
from training.source_options import SourceFlags, source_options

SEEDS_PER_RUN = 1_000_000  # --seed S samples the image seeds S * 1,000,000 + 0, 1, 2, …


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags of both forms."""
    for option in reversed([
        click.option("--metrics", default="fid50k_full", show_default=True, metavar="NAMES", help="Comma-separated"),
        click.option("--detector", default="efficientnet_lite2", show_default=True,
                     help="efficientnet_lite2; with --weights also inception, swav, clip or timm:NAME"),
        click.option("--weights", metavar="FILE", help="Weights of the detector"),
        click.option("--heldout", metavar="DIR|ZIP", help="Images that never trained: the bar for copying"),
        click.option("--pairs", metavar="PNG", help="Picture of the ten images nearest to a training image, with it"),
        click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time"),
        click.option("--gpus", type=click.IntRange(min=1),
                     help="Processes on this machine, a GPU each (--device cpu: cores)"),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps"),
        click.option("--no-cache", is_flag=True, help="Compute the features of data sets anew and keep nothing"),
        click.option("--verbose", type=bool, default=True, show_default=True, metavar="BOOL", help="Show progress"),
    ]):
        command = option(command)
    return command


@click.group(help=__doc__, invoke_without_command=True)
@click.option("--network", metavar="PKL", help="Checkpoint of train.py  [required unless comparing]")
@source_options
@click.option("--data", metavar="ZIP|DIR", help="Real images  [default: the training set, as the checkpoint names it]")
@click.option("--mirror", type=bool, metavar="BOOL", help="Real x-flips in fidNk and copying  [default: as trained]")
@click.option("--seed", type=click.IntRange(0, 4293), default=0, show_default=True, help="Random seed")
@click.option("--outdir", metavar="DIR", help="Where metric-NAME.jsonl go  [default: beside the network]")
@shared_options
@click.pass_context
def main(ctx: click.Context, **flags: Any) -> None:
    if ctx.invoked_subcommand is not None:
        given = [key for key in flags if ctx.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} stands before compare: write flags of compare after it; "
                            "it takes no --network and what belongs to one.")
        return
    if not flags["network"]:
        raise UserError("--network is missing: give a network-snapshot-*.pkl of train.py, or use the form "
                        "calc_metrics.py compare A B for two image sets.")
    from metrics.command import measure_together

    measure_together(measure_network, flags)


@main.command()
@click.argument("images", metavar="A")
@click.argument("reals", metavar="B")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of KID's subsets")
@click.option("--outdir", metavar="DIR", help="Where metric-NAME.jsonl go  [default: nowhere]")
@shared_options
def compare(images: str, reals: str, **flags: Any) -> None:
    """Measure the images in A (judged) against those in B (real): folders or zips, of any image sizes."""
    from metrics.command import measure_together

    measure_together(lambda **rest: measure_images(images, reals, **rest), flags)


def measure_images(images: str, reals: str, outdir: str | None, metrics: str, seed: int, batch: int,
                   heldout: str | None, pairs: str | None, verbose: bool, no_cache: bool, **flags: Any) -> None:
    """The second form: images against images."""
    from metrics.command import deliver, open_cache, open_detector, open_set, progress
    from metrics.image_sets import describe
    from metrics.registry import evaluate

    detector = open_detector(metrics, **flags)
    judged, against = open_set(images), open_set(reals)
    records = evaluate(metrics, judged, against, detector=detector, heldout=open_set(heldout) if heldout else None,
                       seed=seed, cache=open_cache(no_cache), batch_size=batch, progress=progress(verbose),
                       provenance={"snapshot_pkl": None, "images": describe(judged)})
    deliver(records, outdir, pairs, judged.read, against)


def measure_network(network: str, outdir: str | None, metrics: str, detector: str, weights: str | None, device: Any,
                    data: str | None, mirror: bool | None, seed: int, batch: int, heldout: str | None,
                    pairs: str | None, verbose: bool, no_cache: bool, **flags: Any) -> None:
    """The first form: samples of a checkpoint against its data set."""
    from metrics.command import deliver, open_cache, open_detector, open_set, progress
    from metrics.detectors import check_detector, check_not_own
    from metrics.image_sets import from_dataset
    from metrics.names import parse_metrics
    from metrics.registry import evaluate
    from training.run_state import frozen_networks
    from training.sampling import load_gan

    check_detector(detector, weights)
    kinds = {metric.kind for metric in parse_metrics(metrics)}
    gan = load_gan(network, device)
    check_not_own(detector, *frozen_networks(gan.config))
    dataset, notes = open_data(gan, data)
    source = SourceFlags.take(flags)
    sampler, conditions = open_conditions(gan, dataset, source)
    reals = from_dataset(dataset, gan.dataset["mirror"] if mirror is None else mirror)
    if source.class_idx is not None:
        notes.append(f"generated images are of class {source.class_idx} only, real ones of all classes")
    refs = open_references(source.ref, gan, seed) if source.ref and "retrieval" in kinds else None
    records = evaluate(
        metrics, fakes_of(sampler, seed, batch), reals, detector=open_detector(metrics, detector, weights, device),
        heldout=open_set(heldout) if heldout else kept_from_training(gan, dataset), refs=refs,
        groups=groups_of(sampler, seed), inverter=open_inverter(gan, source, batch) if "ivom" in kinds else None,
        cache=open_cache(no_cache), seed=seed, batch_size=batch, progress=progress(verbose), notes=notes,
        provenance={"snapshot_pkl": Path(network).name, "network_hash": gan.hash,
                    "cur_nimg": gan.progress["cur_nimg"], "conditions": conditions},
    )
    deliver(records, outdir or str(Path(network).parent), pairs,
            lambda k: sampler.batch([seed * SEEDS_PER_RUN + k])[0], reals)


def open_data(gan: Any, path: str | None) -> tuple[Any, list[str]]:
    """The data set to measure against, and what has to be said about it."""
    from training.sources import open_images

    dataset, same = open_images(gan, path)
    if same:
        return dataset, []
    trained = gan.dataset
    if path is None:
        raise UserError(f"{trained['path']} has changed since {gan.path} was trained on it; put the former set back, "
                        f"or say --data {trained['path']} to measure against what is there now.")
    if trained["max_images"] is not None or trained.get("holdout"):  # another set counts as a whole
        dataset = type(dataset)(path, use_labels=trained["use_labels"])
    return dataset, [f"{dataset.name} is not what the network was trained on ({trained['name']}): copying is "
                     f"sought in {dataset.name} only"]


def kept_from_training(gan: Any, dataset: Any) -> Any:
    """The part of the network's own data set that ``train.py --holdout`` kept from it, None without."""
    from metrics.image_sets import from_dataset

    share = gan.dataset.get("holdout", 0.0)
    if not share or dataset.fingerprint != gan.dataset["fingerprint"]:
        return None
    return from_dataset(type(dataset)(dataset.path, holdout=share, part="heldout"), False)


def open_conditions(gan: Any, dataset: Any, source: SourceFlags) -> tuple[Any, dict[str, Any]]:
    """A sampler with its conditions, and their provenance with content hashes."""
    from dnnlib import content_hash
    from ldm.latents import open_latents
    from training.sources import open_sampler, training_set

    trained = dataset.fingerprint == gan.dataset["fingerprint"]
    sampler = open_sampler(gan, source, open_latents=open_latents, labels=gan.conditioning.labels_of(dataset),
                           images=lambda flag: dataset if trained else training_set(gan, None, flag))
    hashes = {}
    if source.ref is not None:
        hashes["ref_fingerprint"] = set_fingerprint(source.ref)
    elif source.ldm is not None:
        hashes["ldm_sha256"] = content_hash(source.ldm)
    elif "file" in sampler.provenance:
        hashes["prior_sha256"] = content_hash(sampler.provenance["file"])
    return sampler, {**sampler.provenance, **hashes}


def set_fingerprint(ref: str) -> str:
    """Identity of the content of an image file, folder or zip."""
    from dnnlib import content_hash
    from metrics.command import open_set
    from training.sources import is_picture

    return content_hash(ref) if is_picture(ref) else open_set(ref).fingerprint


def open_references(ref: str, gan: Any, seed: int) -> Any:
    """The reference images as the encoder saw them, and which of them each sample was made from."""
    from metrics.image_sets import from_tensor
    from metrics.registry import References
    from training.sources import read_references

    images = read_references(ref, gan.img_shape)
    return References(from_tensor(images, ref), lambda k: (seed * SEEDS_PER_RUN + k) % len(images))


def open_inverter(gan: Any, source: SourceFlags, batch: int) -> Any:
    """How ``ivom`` inverts images with this network."""
    from metrics.ivom import Inverter
    from training.inversion_metric import inverter_of

    return Inverter(gan.img_shape, gan.path, *inverter_of(gan, source.sigma, source.class_idx, batch))


def fakes_of(sampler: Any, seed: int, batch: int) -> Callable[[int], Iterable[Any]]:
    """Number of images to batches of them, a seed per image."""
    from ldm.latents import FileSource

    def fakes(count: int) -> Iterable[Any]:
        seeds = range(seed * SEEDS_PER_RUN, seed * SEEDS_PER_RUN + count)
        if isinstance(sampler.latents, FileSource):
            sampler.latents(seeds)  # says what is missing before any image is made
        return sampler.images(seeds, batch)

    return fakes


def groups_of(sampler: Any, seed: int) -> Callable[[int], int] | None:
    """Number of the condition of sample k: its reference or stored latent, else its class; None where each has its own.

    Latents that are new in every sample don't count: with a class beside them, all of a class are one group.
    """
    from training.priors import Rows, pick

    first, latents = seed * SEEDS_PER_RUN, sampler.latents
    if sampler.references is not None:
        return lambda k: (first + k) % len(sampler.references)
    if isinstance(latents, Rows):
        numbers: dict[bytes, int] = {}
        return lambda k: numbers.setdefault(latents([first + k]).numpy().tobytes(), len(numbers))
    if sampler.class_idx is not None:
        return lambda k: 0
    # Classes are drawn as `Sampler` draws them; those of latents that make images by themselves are the latents' own.
    labels = getattr(latents, "labels", None) if sampler.labels is None else sampler.labels
    return None if labels is None else lambda k: int(labels[pick(first + k, len(labels))])


if __name__ == "__main__":
    tune_process()
    main()
