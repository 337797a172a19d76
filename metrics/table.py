"""Results as text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any


def format_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Values, what they are of, memorisation and notes of records; those of another detector or data set stand apart.

    Where there are several detectors a line says that their values can't be compared.
    """
    def kind(record: Mapping[str, Any]) -> tuple[str, str, str, str]:
        detector = record["detector"]
        return detector["name"], detector["weights_hash"], record["resize"], record["dataset"]["fingerprint"]

    parts = [list(group) for _, group in itertools.groupby(sorted(records, key=kind), key=kind)]
    text = "\n\n".join(_part(part) for part in parts)
    if len({kind(part[0])[:3] for part in parts}) > 1:
        text += "\n\nThese are values of different detectors: they can't be compared with each other."
    return text


def _part(records: Sequence[Mapping[str, Any]]) -> str:
    first = records[0]
    detector, dataset = first["detector"], first["dataset"]
    rows = [("metric", "value", "95 % interval", "generated", "real", "time")]
    for record in records:
        for name, value in record["results"].items():
            interval = record.get("intervals", {}).get(name)
            spread = f"{interval['low']:.4g} .. {interval['high']:.4g}" if interval else ""
            counts = (f"{record['num_fake']:,}", f"{record['num_real']:,}")
            rows.append((name, f"{value:.6g}", spread, *counts, record["total_time_str"]))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [f"Detector {detector['name']} ({detector['weights_hash'][:12]}), {first['resize']}",
             f"Against {dataset['name']} ({dataset['num_images']:,} images, {dataset['fingerprint'][:12]})"]
    for row in rows:
        name, *rest = (cell.ljust(w) if k == 0 else cell.rjust(w)
                       for k, (cell, w) in enumerate(zip(row, widths, strict=True)))
        lines.append("  ".join([name, *rest]))
    lines += _copying_lines(first["copying"])
    notes = dict.fromkeys(note for record in records for note in record["notes"])
    return "\n".join([*lines, *(f"Note: {note}." for note in notes)])


def _copying_lines(report: Mapping[str, Any]) -> list[str]:
    if report["ratio"] is None:
        lines = ["Copying: no bar to compare with (single or duplicate images in the set)."]
    else:
        lines = [f"Copying: distance to the nearest real image is {report['ratio']:.3f} of that of {report['bar']} "
                 f"({report['fake_median_distance']:.4g} / {report['bar_median_distance']:.4g}; towards 0 = copies)"]
    test, bar = report["three_sample"], report["resampled"]
    if test is not None and test["c_t"] is not None:
        lines.append(f"Three-sample test: C_T {test['c_t']:.2f}, {test['null_std']:.2f} the standard deviation of new "
                     f"images, {test['cells_used']} of {test['cells']} cells (negative = copying)")
    elif test is not None:
        lines.append("Three-sample test: too few generated or held-out images.")
    if bar is not None:
        lines.append(f"FID against the {bar['num_heldout']:,} held-out images: {bar['generated']:.6g}; of "
                     f"{bar['count']:,} training images, the bar to beat: {bar['train']:.6g}")
    return lines
