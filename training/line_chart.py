"""Line charts side by side as a PIL image, for curves that belong in a file of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from training.report_parts import Line, tick_text, ticks

WIDTH, HEIGHT = 420, 300  # of a chart, in pixels
LEFT, RIGHT, TOP, BOTTOM, LEGEND = 48, 16, 34, 40, 18  # LEGEND: height of each of its lines
FINE = 2  # charts are drawn this much larger, then reduced, for smooth lines
COLOURS = ((38, 104, 178), (214, 106, 36), (58, 140, 76), (140, 80, 160), (178, 146, 30))
INK, FAINT, PAPER = (30, 30, 30), (215, 215, 215), (255, 255, 255)


@dataclass(frozen=True)
class Chart:
    """Curves over one x axis. marks: (x, label) of vertical dashed lines; log: logarithmic y axis, all y above 0."""

    title: str
    lines: Sequence[Line]
    marks: Sequence[tuple[float, str]] = ()
    log: bool = False


def draw_charts(charts: Sequence[Chart], x_label: str) -> Image.Image:
    """The charts from left to right. Texts are ASCII, as in `training.labelled_grid`."""
    entries = max(len(chart.lines) + len(chart.marks) for chart in charts)
    height = HEIGHT + LEGEND * entries
    picture = Image.new("RGB", (WIDTH * len(charts) * FINE, height * FINE), PAPER)
    for k, chart in enumerate(charts):
        part = Image.new("RGB", (WIDTH * FINE, height * FINE), PAPER)
        _draw(ImageDraw.Draw(part), chart, x_label)
        picture.paste(part, (WIDTH * FINE * k, 0))
    return picture.resize((WIDTH * len(charts), height), Image.Resampling.LANCZOS)


def _draw(draw: ImageDraw.ImageDraw, chart: Chart, x_label: str) -> None:
    small, large = ImageFont.load_default(12 * FINE), ImageFont.load_default(14 * FINE)
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [math.log10(y) if chart.log else y for line in chart.lines for _, y in line.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(0.0, *ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        """Pixel of a point, y in units of the axis."""
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)
        return (LEFT + across) * FINE, (HEIGHT - BOTTOM - up) * FINE

    draw.text((LEFT * FINE, TOP * FINE // 2), chart.title, INK, large, anchor="lm")
    for tick in y_ticks:
        start = at(x_ticks[0], tick)
        draw.line([start, at(x_ticks[-1], tick)], FAINT, FINE)
        draw.text((start[0] - 6 * FINE, start[1]), tick_text(10 ** tick if chart.log else tick), INK, small, "rm")
    for tick in x_ticks:
        x, y = at(tick, y_ticks[0])
        draw.text((x, y + 6 * FINE), tick_text(tick), INK, small, "mt")
    draw.text((WIDTH * FINE // 2, (HEIGHT - 8) * FINE), x_label, INK, small, "mm")
    top = HEIGHT + LEGEND // 2
    for line, colour in zip(chart.lines, COLOURS, strict=False):
        draw.line([at(x, math.log10(y) if chart.log else y) for x, y in line.points], colour, 2 * FINE, "curve")
        draw.line([(LEFT * FINE, top * FINE), ((LEFT + 20) * FINE, top * FINE)], colour, 2 * FINE)
        draw.text(((LEFT + 26) * FINE, top * FINE), line.label, INK, small, "lm")
        top += LEGEND
    for k, (x, label) in enumerate(chart.marks):
        _dashes(draw, at(x, y_ticks[0]), at(x, y_ticks[-1]), k)
        _dashes(draw, (LEFT * FINE, top * FINE), ((LEFT + 20) * FINE, top * FINE), k)
        draw.text(((LEFT + 26) * FINE, top * FINE), label, INK, small, "lm")
        top += LEGEND


def _dashes(draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], kind: int) -> None:
    """A broken line; the dashes of the first `kind` are long, those of the next shorter."""
    length, dash = math.dist(start, end), (7, 2)[kind % 2] * FINE
    for k in range(0, round(length), 2 * dash):
        places = [tuple(a + (b - a) * min(s / length, 1) for a, b in zip(start, end, strict=True))
                  for s in (k, k + dash)]
        draw.line([(places[0][0], places[0][1]), (places[1][0], places[1][1])], INK, FINE)
