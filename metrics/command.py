"""Parts of calc_metrics.py that both of its forms share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch

from dnnlib import UserError, cache_folder
from metrics.features import FeatureCache
from metrics.image_sets import ImageSet, from_source
from torch_utils.distributed import from_first, rank
from torch_utils.launch import together


def check_flags(flags: Mapping[str, Any]) -> None:
    """`UserError` for a --pairs that can't be a picture, and for empty texts, as unset shell variables leave them.

    An empty path would otherwise be the folder that the command runs in.
    """
    for name, value in flags.items():
        if value == "":
            raise UserError(f"--{name.replace('_', '-')} is empty; give a value or leave it out.")
    if flags["pairs"] is not None:
        from metrics.pairs import check_target

        check_target(flags["pairs"])


def measure_together(work: Callable[..., None], flags: dict[str, Any]) -> None:
    """`work`, with checked `flags` and a device, in the processes that --gpus, --device and torchrun say."""
    def checked(device: torch.device) -> None:
        check_flags(flags)
        work(device=device, **flags)

    together(flags.pop("gpus"), flags.pop("device"), checked)


def say(text: str) -> None:
    """Prints `text`, also where it quotes a path that is no valid text."""
    click.echo(text.encode(errors="replace").decode())


def open_detector(metrics: str, detector: str, weights: str | None, device: torch.device) -> Any:
    """The detector, once the metrics' names are known to be right."""
    from metrics.detectors import load_detector
    from metrics.names import parse_metrics

    parse_metrics(metrics)
    return load_detector(detector, weights, device)


def open_set(path: str) -> ImageSet:
    """The images of a folder or zip."""
    from dnnlib.images import open_source

    if not path:
        raise UserError("The name of an image set is empty; give a folder or zip.")
    return from_source(open_source(path))


def open_cache(off: bool) -> FeatureCache:
    """Where features of data sets are kept between runs."""
    return FeatureCache(None if off else cache_folder(), lambda line: click.echo(line, err=True))


def progress(verbose: bool) -> Callable[[Iterable[Any], int, str], Iterator[Any]]:
    """A progress bar with ETA around batches of images or their features, on terminals, by process 0."""

    def track(batches: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit="img", disable=None if verbose and rank() == 0 else True) as bar:
            for batch in batches:
                yield batch
                bar.update(min(len(batch), total - bar.n))

    return track


def save_closest(path: str, records: list[dict[str, Any]], generated: Callable[[int], Any], reals: ImageSet) -> None:
    """The closest pairs of the memorisation report as a picture; `generated`: number to uint8 ``[3 or 1, H, W]``."""
    from metrics.pairs import save_pairs

    pairs = []
    for pair in records[0]["copying"]["closest"]:
        real = reals.read(pair["image"])
        pairs.append((generated(pair["generated"]), real.flip(-1) if pair["flipped"] else real, pair["distance"]))
    save_pairs(path, pairs)
    say(f"The {len(pairs)} closest pairs (generated above, training image below): {path}")


def show(records: list[dict[str, Any]], folder: str | None) -> None:
    """Prints the results, then stores them: what was measured is not lost on a full disk."""
    from metrics.records import write_records
    from metrics.table import format_table

    say(format_table(records))
    if folder is not None:
        paths: list[Path] = write_records(records, folder)
        say(f"Stored in {', '.join(map(str, paths))}")


def deliver(records: list[dict[str, Any]], folder: str | None, pairs: str | None, generated: Callable[[int], Any],
            reals: ImageSet) -> None:
    """`show` and, for a path `pairs`, `save_closest`, on process 0."""
    def done() -> None:
        show(records, folder)
        if pairs:
            save_closest(pairs, records, generated, reals)

    from_first(done)
