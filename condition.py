"""Conditioning at test time: images of a trained network that complete a picture, resemble one, or fit a text.

\b
Examples:
  python condition.py inpaint --network net.pkl --ldm ldm.pkl --target photo.png --mask right-half --outdir out
  python condition.py similar --network net.pkl --ldm ldm.pkl --target photos/ --samples 64 --prior guided --outdir out
  python condition.py text --network stylegan2.pkl --space s --text "sports car" --prior none,mean --outdir out
  python condition.py invert --network net.pkl --target photos/ --outdir out

Priors keep the latents likely: none, mean, cluster, diffusion, guided; the last two need a latent diffusion model.

\b
OUTDIR/PRIOR/seed0000.png, frames.png   the samples; the way of the first ones
OUTDIR/PRIOR/latents.pkl                for gen_images.py --ldm, with the same seeds
OUTDIR/grid.png, curves.png, curves.csv all priors side by side
OUTDIR/results.jsonl                    task loss, diversity and realism of each prior
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from dnnlib import UserError
from dnnlib.tuning import tune_process
from training.conditioning_options import BELONGS, check_flags, parse_priors, shared_options
from training.inversion_command import invert

LATENTS = 50_000  # as the work on test-time conditioning drew
SHOWN = 8  # samples in grid.png and frames.png
target_option = click.option("--target", required=True, metavar="IMAGES",
                             help="Image file, or folder or zip: sample k gets number k; a random choice of more")
pixel_option = click.option("--pixel-weight", type=click.FloatRange(min=0), default=1.0, show_default=True,
                            help="Weight of squared pixel differences beside the perceptual distance")


@click.group(help=__doc__)
def main() -> None:
    """See the module's text."""


@main.command()
@target_option
@click.option("--mask", required=True, metavar="IMAGE|NAME", help="White where pixels are missing; or left-half, "
              "right-half, top-half, bottom-half, center")
@pixel_option
@shared_options
def inpaint(target: str, mask: str, pixel_weight: float, **flags: Any) -> None:
    """Fill the hole of a picture."""
    def make(gan: Any) -> tuple[Any, dict[str, Any]]:
        from ldm.guidance.inpaint import Inpainting
        from training.conditioning_inputs import read_hole, read_targets
        from training.loader import to_float

        images = read_targets(target, gan.img_shape, flags["samples"])
        missing = read_hole(mask, *gan.img_shape[1:])
        shown = images.masked_fill(missing, 128)
        task = Inpainting(to_float(images.to(gan.device)), missing.to(gan.device), pixel_weight)
        return task, {"target": images, "masked": shown}

    condition("inpaint", make, {"target": target, "mask": mask, "pixel_weight": pixel_weight}, flags)


@main.command()
@target_option
@pixel_option
@shared_options
def similar(target: str, pixel_weight: float, **flags: Any) -> None:
    """Look like a picture."""
    def make(gan: Any) -> tuple[Any, dict[str, Any]]:
        from ldm.guidance.similarity import Similarity
        from training.conditioning_inputs import read_targets
        from training.loader import to_float

        images = read_targets(target, gan.img_shape, flags["samples"])
        return Similarity(to_float(images.to(gan.device)), pixel_weight), {"target": images}

    condition("similar", make, {"target": target, "pixel_weight": pixel_weight}, flags)


@main.command()
@click.option("--text", required=True, help="Name of an ImageNet class; with --clip-weights any text")
@click.option("--clip-weights", metavar="FILE", help="Weights of a CLIP model, for free text (needs open_clip)")
@click.option("--clip-model", metavar="NAME", help="Its name in open_clip  [default: ViT-B-32]")
@shared_options
def text(text: str, clip_weights: str | None, clip_model: str | None, **flags: Any) -> None:
    """Fit a class of ImageNet or, with CLIP, a text."""
    if clip_model is not None and clip_weights is None:
        raise UserError("--clip-model belongs to --clip-weights FILE; give that or leave it out.")

    def make(gan: Any) -> tuple[Any, dict[str, Any]]:
        from ldm.guidance.clip import DEFAULT_MODEL, ClipText
        from ldm.guidance.text import NamedClass

        if clip_weights is None:
            return NamedClass(text), {}
        return ClipText(text, clip_weights, clip_model or DEFAULT_MODEL, gan.device), {}

    condition("text", make, {"text": text, "clip_weights": clip_weights, "clip_model": clip_model}, flags)


def condition(task_name: str, make_task: Callable[[Any], tuple[Any, dict[str, Any]]], about: dict[str, Any],
              flags: dict[str, Any]) -> None:
    """Everything after the task's own flags. make_task: network to the task and the pictures of it, by heading."""
    priors = parse_priors(flags["priors"])
    check_flags(priors, flags)
    from tqdm import tqdm

    from ldm.settings import Sampling
    from metrics.detectors import DEFAULT, check_not_own
    from torch_utils.device import select_device
    from training import conditioning_report as report
    from training.loader import to_uint8
    from training.run_state import frozen_networks
    from training.sampling import load_gan
    from training.sources import training_set

    gan = load_gan(flags["network"], select_device(flags["device"]))
    check_not_own(DEFAULT, *frozen_networks(gan.config))
    task, pictures = make_task(gan)
    dataset = training_set(gan, flags["data"], "The table of results")
    search, provenance = make_search(gan, task, dataset, priors, flags)
    seeds = list(range(flags["seed"], flags["seed"] + flags["samples"]))
    outdir, shown = Path(flags["outdir"]), seeds[:SHOWN]
    columns = {title: images[[k % len(images) for k in range(len(shown))]] for title, images in pictures.items()}
    records, task_losses, prior_losses = [], {}, {}
    for name in priors:
        with tqdm(total=len(seeds) * search.updates(name), desc=name, unit="update", disable=None) as bar:
            found = search.run(name, seeds, flags["batch"], frames=flags["frames"], rows=SHOWN, progress=bar.update)
        folder, img = outdir / name, to_uint8(found.img)
        report.save_samples(folder, seeds, found.img)
        if found.frames is not None:
            report.save_frames(folder / "frames.png", found.frames)
        report.save_latents(folder / "latents.pkl", found.latents, seeds, provenance, f"{task_name}, prior {name}",
                            Sampling().state())
        columns[name] = img[:len(shown)]
        task_losses[name], prior_losses[name] = found.task, found.prior
        report.save_comparison(outdir / "grid.png", columns, shown)
        report.write_curves(outdir / "curves.csv", task_losses, prior_losses)
        report.draw_curves(outdir / "curves.png", task_losses, prior_losses)
        records.append({"task": task_name, "prior": name, "samples": len(seeds), "seed": flags["seed"],
                        **found.summary(), **measure(img, gan, dataset, task.num_targets, flags), **about, **provenance,
                        "settings": {key: getattr(search.settings, key) for key in BELONGS if name in BELONGS[key]}})
        report.write_results(outdir / "results.jsonl", records)
    click.echo(report.format_results(records))
    click.echo(f"Distances in EfficientNet-Lite2 features, which did not guide. All files are in {outdir}.")


def make_search(gan: Any, task: Any, dataset: Any, priors: list[str], flags: dict[str, Any]) -> tuple[Any, dict]:
    """The `Search` over latents of the network, and where they come from."""
    import torch

    from ldm.guide_run import Diffusion, Search, Settings
    from ldm.guide_space import WhitenedSpace
    from ldm.whitening import fit
    from torch_utils.clustering import kmeans
    from training.editing import EditSpace

    edit = EditSpace(gan, flags["space"] or ("h" if gan.uses_latents else "w"), sigma=flags["sigma"],
                     class_idx=flags["class_idx"])
    prior = open_prior(flags["ldm"], gan, edit) if flags["ldm"] is not None else None
    drawn: Any = None
    if prior is None or "cluster" in priors:
        drawn = draw(gan, edit, prior, dataset, flags["latents"])
    whitening = prior.whitening if prior is not None else fit(drawn, len(drawn)).to(gan.device)
    space = WhitenedSpace(edit.shape, whitening, gan.G.encoder.normalization if edit.name == "h" else "none",
                          edit.decode)
    settings, centres = Settings(**{key: flags[key] for key in BELONGS if flags[key] is not None}), None
    if "cluster" in priors:
        rows = torch.cat([whitening.apply(part.to(gan.device)).flatten(1).cpu() for part in drawn.split(4096)])
        centres = kmeans(rows, settings.clusters, 0).centroids.to(gan.device)
    search = Search(space, task, settings, start=lambda seeds: edit.start(seeds, source(prior, drawn, flags)),
                    diffusion=None if prior is None else Diffusion.of(prior, flags["class_idx"]), centres=centres)
    search.check(priors)
    ldm = {} if prior is None else {"ldm": prior.path, "ldm_hash": prior.hash}
    return search, {"space": edit.name, "sigma": edit.sigma, "class": edit.class_idx, "network": gan.path,
                    "network_hash": gan.hash, "latents": None if drawn is None else len(drawn), **ldm}


def open_prior(path: str, gan: Any, edit: Any) -> Any:
    """The latent diffusion model of this network and space, or a `UserError`."""
    from ldm.prior import load_prior

    prior = load_prior(path, gan.device)
    if prior.gan_hash != gan.hash:
        raise UserError(f"--ldm {path} belongs to another GAN ({prior.network}): its latents mean nothing to this one. "
                        f"Train one: python ldm/train.py --network {gan.path} --outdir ldm-runs")
    own = "h" if prior.space == "f" else prior.space
    if own != edit.name:
        raise UserError(f"--ldm {path} models {own}, not --space {edit.name}; say --space {own}, or train one: "
                        f"python ldm/train.py --network {gan.path} --space {edit.name.replace('h', 'f')}")
    return prior


def draw(gan: Any, edit: Any, prior: Any, dataset: Any, count: int | None) -> Any:
    """Latents ``[n, C, H, W]`` that stand for the space: of the mapping network, of the model, or of the images."""
    from ldm.settings import Sampling
    from torch_utils.rng import mix_seed
    from training.sources import encode_images
    from training.spaces import draw_latents

    if edit.name != "h":
        labels = None if edit.class_idx is None else [edit.class_idx]
        return draw_latents(gan, edit.name, labels, count or LATENTS, 0)[0]
    if prior is None:
        if count is not None:
            raise UserError("--latents: without --ldm there are as many h as training images; leave it out.")
        return encode_images(gan, dataset)
    seeds = [mix_seed("clusters", k) for k in range(count or LATENTS)]
    return prior.sample(seeds, Sampling("dpm2m", class_idx=edit.class_idx if prior.labels is not None else None), 4096)


def source(prior: Any, drawn: Any, flags: dict[str, Any]) -> Callable[[Sequence[int]], Any]:
    """Seeds to latents f from which samples start: of the model or, without, of training images."""
    from ldm.settings import Sampling
    from training.priors import pick

    if prior is None:
        return lambda seeds: drawn[[pick(seed, len(drawn)) for seed in seeds]]
    settings = Sampling(class_idx=flags["class_idx"] if prior.labels is not None else None)
    return lambda seeds: prior.sample(seeds, settings)


def measure(img: Any, gan: Any, dataset: Any, num_targets: int, flags: dict[str, Any]) -> dict[str, Any]:
    """Diversity and realism of uint8 images ``[n, C, H, W]``, by a network that doesn't guide."""
    from metrics.command import open_cache
    from metrics.detectors import load_detector
    from metrics.image_sets import from_dataset, from_tensor
    from metrics.registry import evaluate

    name = f"diversity{len(img)}"
    records = evaluate(f"fid_full,kid_full,{name}", from_tensor(img, "samples"),
                       from_dataset(dataset, gan.dataset["mirror"]), detector=load_detector(device=gan.device),
                       cache=open_cache(False), batch_size=flags["batch"],
                       groups=(lambda k: k % num_targets) if num_targets > 1 else None)
    values = {key: value for record in records for key, value in record["results"].items()}
    return {"diversity": values[name], "diversity_within": values.get(f"{name}_within"), "fd": values["fid_full"],
            "kid": values["kid_full"], "nearest_ratio": records[0]["copying"]["ratio"],
            "intervals": {key: value for record in records for key, value in record["intervals"].items()},
            "detector": records[0]["detector"], "dataset": records[0]["dataset"]}


main.add_command(invert)

if __name__ == "__main__":
    tune_process()
    main()
