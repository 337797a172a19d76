"""Results as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def format_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The records of one `metrics.registry.evaluate` call: values, what they are of, memorisation, notes."""
    first = records[0]
    detector = first["detector"]
    dataset = first["dataset"]
    rows = [("metric", "value", "generated", "real", "time")]
    for record in records:
        for name, value in record["results"].items():
            counts = (f"{record['num_fake']:,}", f"{record['num_real']:,}")
            rows.append((name, f"{value:.6g}", *counts, record["total_time_str"]))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [f"Detector {detector['name']} ({detector['weights_hash'][:12]}), {first['resize']}",
             f"Against {dataset['name']} ({dataset['num_images']:,} images, {dataset['fingerprint'][:12]})"]
    for row in rows:
        name, *rest = (cell.ljust(w) if k == 0 else cell.rjust(w)
                       for k, (cell, w) in enumerate(zip(row, widths, strict=True)))
        lines.append("  ".join([name, *rest]))
    lines.append(_copying_line(first["copying"]))
    notes = dict.fromkeys(note for record in records for note in record["notes"])
    return "\n".join([*lines, *(f"Note: {note}." for note in notes)])


def _copying_line(report: Mapping[str, Any]) -> str:
    if report["ratio"] is None:
        return "Copying: no bar to compare with (single or duplicate images in the set)."
    return (f"Copying: distance to the nearest real image is {report['ratio']:.3f} of that of {report['bar']} "
            f"({report['fake_median_distance']:.4g} / {report['bar_median_distance']:.4g}; towards 0 = copies)")
