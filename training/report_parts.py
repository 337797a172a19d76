"""Building blocks of the report: pictures as data URLs, line charts as SVG, tables. Every text is escaped here."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnlib import UserError

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 1024  # pixels on a side that a picture keeps in the page
WIDTH, HEIGHT = 420, 230  # of a chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 12, 36


def load_picture(path: str | Path) -> Image.Image:
    """An RGB picture; `UserError` naming the file if it can't be read."""
    from PIL import Image

    from dnnlib.images import decode

    try:
        return Image.fromarray(decode(Path(path).read_bytes(), str(path)))
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}); make it again or leave it out.") from error


def data_url(picture: Image.Image) -> str:
    """The picture inside the page: PNG where it is small, else at most `LARGEST` pixels a side, as JPEG."""
    from PIL import Image

    small = max(picture.size) <= 640
    if max(picture.size) > LARGEST:
        picture = picture.copy()
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if small:
        picture.save(buffer, "png", optimize=True)
    else:
        picture.save(buffer, "jpeg", quality=92, subsampling=0)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def figure(picture: Image.Image, caption: str, note: str = "") -> str:
    """A picture with its caption."""
    note = f" <span>{escape(note)}</span>" if note else ""
    return (f'<figure><img alt="{escape(caption)}" width="{picture.width}" height="{picture.height}" '
            f'src="{data_url(picture)}"><figcaption>{escape(caption)}{note}</figcaption></figure>')


def section(anchor: str, title: str, body: str, lead: str = "") -> str:
    """One part of the page; `body` is HTML, `title` and `lead` are text."""
    lead = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{lead}{body}</section>'


def missing(sentence: str) -> str:
    """What stands where an input wasn't given."""
    return f'<p class="missing">{escape(sentence)}</p>'


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names and values; pairs without a value are left out."""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
                   for name, value in pairs if value not in (None, ""))
    return f'<dl class="facts">{rows}</dl>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column holds names; cells are text."""
    titles = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value: Any, digits: int = 3) -> str:
    """A value for people: `digits` significant digits, thousands separated; a dash for None and nan."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, int) or abs(value) >= 10 ** digits:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


@dataclass(frozen=True)
class Line:
    """A curve of a chart: label, points, and whether it is a reference that isn't measured (dashed)."""

    label: str
    points: Sequence[tuple[float, float]]
    reference: bool = False


def chart(title: str, lines: Sequence[Line], x_label: str, note: str = "", log: bool = False) -> str:
    """Curves as an SVG figure with its legend, in the page's colours; nothing if no line has a finite point.

    log: logarithmic y axis; values that are not above 0 are left out.
    """
    kept = []
    for line in lines:
        points = [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)]
        if points:
            kept.append(Line(line.label, points, line.reference))
    if not kept:
        return ""
    xs = [x for line in kept for x, _ in line.points]
    ys = [math.log10(y) if log else y for line in kept for _, y in line.points]
    x_ticks, y_ticks = ticks(min(0.0, *xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = x_ticks[0], max(xs[0], *xs, x_ticks[0] + 1e-9)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if log else y
        return (LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM))

    parts = []
    for tick in y_ticks:
        value = 10 ** tick if log else tick
        y = at(x_low, value)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="y" x="{LEFT - 7}" y="{y + 4:.1f}">{tick_text(value)}</text>')
    for tick in x_ticks:
        if tick <= x_high:
            x = at(tick, 10 ** y_low if log else y_low)[0]
            parts.append(f'<text class="x" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}">{tick_text(tick)}</text>')
    colours = iter(range(1, 9))
    legend = []
    for line in kept:
        css = "ref" if line.reference else f"c{next(colours)}"
        places = [at(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="{css}" points="{path}"/>')
        if not line.reference:
            parts.append(f'<circle class="{css}" cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="3"/>')
        last = number(line.points[-1][1])
        legend.append(f'<li class="{css}"><i></i>{escape(line.label)} <b>{last}</b></li>')
    note = f"<p>{escape(note)}</p>" if note else ""
    return (f'<figure class="chart"><figcaption>{escape(title)}</figcaption><ul>{"".join(legend)}</ul>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}'
            f'<text class="x axis" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}">{escape(x_label)}</text>'
            f"</svg>{note}</figure>")


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at most `low` to at least `high`, two or more."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        margin = abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_text(value: float) -> str:
    """An axis number without superfluous zeros."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}".replace("-", "−")
