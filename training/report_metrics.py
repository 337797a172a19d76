"""The numbers of the report: quality beside copying, retrieval beside its control, each with its provenance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from training.report_data import Measured, RunFiles, flatten, images_seen, training_time
from training.report_parts import facts, missing, number, table


def brief(rows: Sequence[Measured]) -> str:
    """The few numbers that matter most, of the rows that a network made."""
    pairs = []
    for row in rows:
        if row.first("snapshot_pkl") is None:
            continue
        for kind, label in (("fid", "Fréchet distance"), ("kid", "KID")):
            for name in row.names(kind)[:1]:
                pairs.append((f"{label} ({name}): {row.title}", number(row.value(name), 4 if kind == "fid" else 3)))
        if row.value("retrieval_ratio") is not None:
            pairs.append((f"Retrieval rank / chance: {row.title}", number(row.value("retrieval_ratio"))))
    return facts(pairs).replace('class="facts"', 'class="facts brief"') if pairs else ""


def quality(rows: Sequence[Measured]) -> str:
    """FD, KID, memorisation and what else was measured of every row, the notes, and the whole provenance.

    Rows of several detectors say which one theirs is: their values can't be compared.
    """
    rows = [row for row in rows if row.names("fid") or row.names("kid")]
    if not rows:
        return missing("No metrics were given (--metrics FILE.jsonl).")
    several = len({name for row in rows for name in detectors(row)}) > 1
    fids = list(dict.fromkeys(name for row in rows for name in row.names("fid")))
    lines = []
    for row in rows:
        kid = row.names("kid")
        counts = sorted({(r["num_fake"], r["num_real"]) for r in distances(row) if "num_fake" in r and "num_real" in r})
        copying = row.first("copying") or {}
        title = f"{row.title} [{', '.join(detectors(row))}]" if several else row.title
        lines.append([title, *(number(row.value(name), 4) for name in fids), spread(row, kid[0]) if kid else "–",
                      number(copying.get("ratio")), number((copying.get("three_sample") or {}).get("c_t")),
                      "; ".join(f"{fake:,} / {real:,}" for fake, real in counts)])
    notes = dict.fromkeys(note for row in rows for record in row.records for note in record.get("notes") or [])
    explained = [
        "Lower is better for both distances. KID has no bias from the number of images, so it may be compared across "
        "rows; a Fréchet distance only between rows with equal counts, in one column.",
        "Distance ratio: median distance of the images to their nearest training image, over that of images that are "
        "no copies. Near 1: as new as held-out images; towards 0: copies. It says nothing about quality.",
        "C_T: three-sample test against held-out images. About 0: as new as these; negative: copies.",
        "Rows of real held-out images and of noise, where there are some, are the scale: a finite set is some way "
        "from its own held-out part.",
        *["Detectors differ between rows: only rows of one detector may be compared."] * several, *notes]
    items = "".join(f"<li>{escape(note)}</li>" for note in explained)
    return (table(["", *fids, "KID", "distance ratio", "C_T", "images judged / real"], lines) + others(rows)
            + f'<ul class="notes">{items}</ul>' + provenance(
                (row.title, [r for r in row.records if r["metric"] != "retrieval"]) for row in rows))


def detectors(row: Measured) -> list[str]:
    """Names of the detectors behind a row's distances."""
    return list(dict.fromkeys(str((record.get("detector") or {}).get("name")) for record in distances(row)))


def others(rows: Sequence[Measured]) -> str:
    """Values that are neither distances nor of retrieval, such as precision and recall; empty if there are none."""
    lines = [[row.title, name, number(value, 4)] for row in rows for record in row.records
             if not str(record["metric"]).startswith(("fid", "kid", "retrieval"))
             for name, value in record["results"].items()]
    return table(["", "metric", "value"], lines) if lines else ""


def spread(row: Measured, name: str) -> str:
    """Mean ± standard deviation over the subsets of a kernel distance."""
    value, std = row.value(name), row.value(f"{name}_std")
    return number(value) if value is None or std is None else f"{number(value)} ± {number(std, 2)}"


def distances(row: Measured) -> list[dict[str, Any]]:
    """The records of a row that compare distributions."""
    return [record for record in row.records if str(record["metric"]).startswith(("fid", "kid"))]


def provenance(rows: Iterable[tuple[str, Sequence[dict[str, Any]]]]) -> str:
    """Everything that was recorded with each value, folded."""
    blocks = []
    for title, records in rows:
        for record in records:
            rest = {key: value for key, value in record.items() if key not in ("metric", "timestamp")}
            blocks.append(f"<details><summary>{escape(title)}: {escape(str(record['metric']))}</summary>"
                          f"{facts(flatten(rest))}</details>")
    return "<h3>How each number was measured</h3>" + "".join(blocks)


def retrieval(rows: Sequence[Measured], control: RunFiles | None) -> str:
    """Median retrieval ranks beside chance, and the control's."""
    found = [row for row in rows if row.value("retrieval_ratio") is not None]
    if not found:
        return missing("Retrieval was not measured (calc_metrics.py --ref IMAGES --metrics retrieval).")
    lines = [[row.title, *(number(row.value(f"retrieval_{key}"), 4) for key in ("median_rank", "chance", "ratio"))]
             for row in found]
    text = ("From the sample drawn with image i's latent, image i is looked for among all reference images. A "
            "generator that ignores its condition finds it at chance: ratio 1.")
    seen = images_seen(control) if control else None
    if control and seen:
        text += f" The control's f is constant; it has seen {number(round(seen))} images in {training_time(control)}."
    return f"<p>{escape(text)}</p>" + table(["", "median rank", "chance", "ratio"], lines) + provenance(
        (row.title, [r for r in row.records if r["metric"] == "retrieval"]) for row in found)
