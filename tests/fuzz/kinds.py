"""Every kind of file that may come from a stranger: how sound ones look, how they are changed, who opens them."""

from __future__ import annotations

import contextlib
import gzip
import random
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dnnlib import UserError
from fuzz import samples
from fuzz.attacks import attacks
from fuzz.mutate import mutate_bytes, mutate_json, mutate_lines, mutate_zip
from fuzz.pickles import mutate_checkpoint

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sample:
    """A file: its name, which says how it is opened, and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    samples   of sound files, the seeds of the mutations
    mutate    a changed file of a sample
    open      opens the file under a path, as the scripts do; raises UserError for a bad one
    memory    MiB of address space that opening any file may take
    """

    samples: Callable[[], Sequence[Sample]]
    mutate: Callable[[Sample, random.Random], bytes]
    open: Callable[[Path], None]
    memory: int


def _named(name: str, files: Callable[[], Sequence[bytes]]) -> Callable[[], list[Sample]]:
    return lambda: [Sample(name, data) for data in files()]


def _change_entry(name: str, content: bytes, rng: random.Random) -> bytes:
    return mutate_json(content, rng) if name.endswith(".json") else mutate_bytes(content, rng)


def _open_checkpoint(path: Path) -> None:
    """As gen_images.py: the generator, then an image of it."""
    from training.sampling import Sampler, load_gan

    gan = load_gan(path, CPU)
    latents = (lambda seeds: torch.ones(len(seeds), *gan.G.encoder.latent_shape)) if gan.uses_latents else None
    Sampler(gan, latents=latents, class_idx=0 if gan.conditioning.classes else None).batch([0, 1])


def _open_latents(path: Path) -> None:
    from ldm.latents import open_latents

    open_latents(path, samples.GAN_HASH, CPU, {"steps": None})([0, 5])


def _open_prior(path: Path) -> None:
    from training.prior_files import open_prior

    open_prior(path, samples.gan_stub(), "--prior")([0, 1, 2, 3])


def _open_features(path: Path) -> None:
    from torch_utils.feature_store import FeatureStore

    store = FeatureStore.open(path)
    store[torch.arange(min(len(store), 4))]


def _open_stats(path: Path) -> None:
    """As calc_metrics.py: what can't be used is computed again, after a line."""
    from metrics.features import FeatureCache

    lines: list[str] = []
    cache, key = FeatureCache(path.parent, lines.append), {"images": "f"}
    target = cache._path(key)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(path.read_bytes())
    if cache.get(key) is None:
        raise UserError(lines[0])


def _open_images(path: Path) -> None:
    """As dataset_tool.py: all that can be read is converted, the rest is listed."""
    from dnnlib.archives import open_any
    from dnnlib.conversion import Shaping, convert_all
    from dnnlib.labels import source_labels

    with open_any(path) as source:
        source_labels(source, None)
        shaping = Shaping((32, 32), "pad")
        list(convert_all(source, source.names[:8], shaping, workers=1))


def _open_set(path: Path, labels: bool = True) -> None:
    """As dataset_tool.py, then as train.py, which wants a converted set."""
    from training.dataset import ImageDataset

    with contextlib.suppress(UserError):
        _open_images(path)
    dataset = ImageDataset(path, use_labels=labels)
    for index in range(min(len(dataset), 8)):
        dataset[index]


def _open_image(path: Path) -> None:
    from dnnlib.images import decode

    decode(path.read_bytes(), str(path))


def _open_labels(path: Path) -> None:
    """A folder of images with this dataset.json."""
    folder = path.parent / "set"
    if not folder.is_dir():
        for index in range(4):
            target = folder / f"00000/img{index:08d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(samples.png(index))
    (folder / "dataset.json").write_bytes(path.read_bytes())
    _open_set(folder)


def _open_archive(path: Path) -> None:
    if "idx3" in path.name:
        path.with_name(path.name.replace("images-idx3", "labels-idx1")).write_bytes(samples.mnist_labels())
    if path.name == "data.mdb":
        folder = path.parent / "lsun"
        folder.mkdir(exist_ok=True)
        (folder / "data.mdb").write_bytes(path.read_bytes())
        _open_set(folder, labels=False)
    else:
        _open_images(path)


def _open_run(path: Path) -> None:
    """As the report, with one of the run directory's files exchanged."""
    from training import report, report_curves, report_data, report_metrics

    folder = path.parent / "run"
    folder.mkdir(exist_ok=True)
    for name, content in samples.run_files().items():
        (folder / name).write_bytes(path.read_bytes() if name == path.name else content)
    run = report_data.read_run(str(folder), "--run")
    rows = report_data.read_metrics([f"Row={folder / 'metric-fid2k_full.jsonl'}"])
    report.about(run, None), report.summary(run), report.progress(run), report.versions(run)
    report_curves.curves_section(run, run, None)
    report_metrics.brief(rows), report_metrics.quality(rows), report_metrics.retrieval(rows, run)


def _archive_samples() -> list[Sample]:
    return [Sample(name, data) for name, data in samples.archives()]


def _run_samples() -> list[Sample]:
    return [Sample(name, data) for name, data in samples.run_files().items() if name != "log.txt"]


def _mutate_run(sample: Sample, rng: random.Random) -> bytes:
    return (mutate_json if sample.name.endswith(".json") else mutate_lines)(sample.data, rng)


def _mutate_archive(sample: Sample, rng: random.Random) -> bytes:
    """Changes of the packed file, or of what is in it."""
    if not sample.name.endswith("gz") or rng.random() < 0.3:
        return mutate_bytes(sample.data, rng)
    return gzip.compress(mutate_bytes(gzip.decompress(sample.data), rng), 1)


def _mutate(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Sample, random.Random], bytes]:
    return lambda sample, rng: change(sample.data, rng)


def _mutate_set(data: bytes, rng: random.Random) -> bytes:
    return mutate_zip(data, rng, _change_entry)


def _mutate_tar(data: bytes, rng: random.Random) -> bytes:
    """Changes anywhere, then check sums of headers that are right again."""
    out = bytearray(mutate_bytes(data, rng))
    for at in range(0, len(out) - 511, 512):
        if out[at + 257:at + 262] == b"ustar":
            out[at + 148:at + 156] = b"%06o\0 " % (sum(out[at:at + 148]) + 256 + sum(out[at + 156:at + 512]))
    return bytes(out)


_PACKED = _mutate(mutate_checkpoint)
KINDS: dict[str, Kind] = {
    "checkpoint": Kind(_named("network-snapshot-000001.pkl", samples.checkpoints), _PACKED, _open_checkpoint, 512),
    "latents": Kind(_named("latents.pkl", samples.latents), _PACKED, _open_latents, 512),
    "prior": Kind(_named("prior.pkl", samples.priors), _PACKED, _open_prior, 512),
    "stats": Kind(_named("stats.pkl", samples.stats), _PACKED, _open_stats, 512),
    "features": Kind(_named("latents.npy", lambda: [samples.features_file()]), _mutate(mutate_bytes), _open_features,
                     256),
    "zip": Kind(_named("set.zip", lambda: [samples.image_set(), samples.image_set(8)]), _mutate(_mutate_set), _open_set,
                2048),
    "tar": Kind(_named("set.tar", lambda: [samples.tar_set(kind) for kind in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT,
                                                                              tarfile.GNU_FORMAT)]),
                _mutate(_mutate_tar), _open_set, 1024),
    "image": Kind(_named("picture.png", samples.images), _mutate(mutate_bytes), _open_image, 2048),
    "labels": Kind(_named("dataset.json", samples.labels), _mutate(mutate_json), _open_labels, 1024),
    "archive": Kind(_archive_samples, _mutate_archive, _open_archive, 512),
    "run": Kind(_run_samples, _mutate_run, _open_run, 512),
}


def attack_samples(kind: str, canary: str) -> list[tuple[str, Sample]]:
    """Files of a kind that were made by hand to do harm, with their titles; all of them must be refused."""
    usual = KINDS[kind].samples()[0].name
    return [(title, Sample(title.partition("@")[2] or usual, data)) for title, data in attacks(kind, canary).items()]
