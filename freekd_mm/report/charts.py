"""Line and bar charts as inline SVG; colours come from the page, so that they fit its light and its dark scheme."""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Tuple

from freekd_mm.compat.versions import zip_equal

Points = typing.Sequence[Tuple[float, float]]

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 42
#: Colours that the page defines, and the dashes that tell the second round of them apart.
COLORS = 8
DASHES = ('', '7 4', '2 3')
#: More points than these are averaged: they would be closer than a pixel.
MOST_POINTS = 300
#: A line whose first values are so many times higher than nearly all others is cut off.
SPIKE = 4.0


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: What it is called.
        points: (x, y) in the order of x.
        style: Number of its colour and dash; the same for one run in all charts.
    """

    label: str
    points: Points
    style: int = 0


def stroke(style: int) -> str:
    """Returns the SVG attributes of a line style."""
    dash = DASHES[style // COLORS % len(DASHES)]
    return f'class="s{style % COLORS}"' + (f' stroke-dasharray="{dash}"' if dash else '')


def number(value: float, digits: int = 4) -> str:
    """Returns a number for people: four digits, no exponent where it can be helped."""
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f'{value:.{max(digits - 2, 0)}e}'.partition('e')
        short = mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa
        return f'{short}e{int(exponent)}'
    return f'{value:.{digits}g}' if abs(value) < 10**digits else f'{value:.0f}'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns round numbers from at most ``low`` to at least ``high``, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def finite(points: Points) -> list[tuple[float, float]]:
    """Returns the points that can be drawn."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def thin(points: Points) -> Points:
    """Averages neighbours so that at most MOST_POINTS are left."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return points
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in block) / len(block), sum(y for _, y in block) / len(block)) for block in blocks]


def _ceiling(lines: Sequence[Line]) -> float | None:
    """Returns where to cut off a few values that would press all others flat; None for nowhere."""
    values = sorted(y for line in lines for _, y in line.points)
    typical = values[int(0.95 * (len(values) - 1))]
    return typical * 1.25 if len(values) >= 20 and typical > 0 and values[-1] > SPIKE * typical else None


def line_chart(title: str, lines: Sequence[Line], x_label: str, y_label: str, dots: bool = False) -> str:
    """Returns a figure with the curves; '' where there is nothing to draw.

    Args:
        title: Caption.
        lines: The curves; what is not finite is left out.
        x_label: Name of the x axis, with its unit.
        y_label: Name of the y axis, with its unit.
        dots: Mark each point, with its value as tooltip: for few, exact values.
    """
    lines = [Line(line.label, finite(line.points), line.style) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ''
    top = _ceiling(lines)
    axes = _Axes(lines, top)
    drawn = ''.join(_curve(line, axes, dots) for line in lines)
    if top is not None:
        title = f'{title} (cut off above {number(top, 2)})'
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    inner = (
        f'<svg x="{left}" y="{TOP - 4}" width="{right - left + 4}" height="{bottom - TOP + 8}" '
        f'viewBox="{left} {TOP - 4} {right - left + 4} {bottom - TOP + 8}">{drawn}</svg>'
    )
    middle = f'x="{(left + right) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle"'
    labels = (
        f'<text class="axis" {middle}>{escape(x_label)}</text>'
        f'<text class="axis" transform="translate(12 {(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f'{escape(y_label)}</text>'
    )
    names = ', '.join(line.label for line in lines)
    return figure(title, f'{title}: {y_label} over {x_label} of {names}', axes.drawn() + inner + labels, HEIGHT)


class _Axes:
    """Maps values to pixels and draws the grid."""

    def __init__(self, lines: Sequence[Line], top: float | None) -> None:
        xs = [x for line in lines for x, _ in line.points]
        ys = [y if top is None else min(y, top) for line in lines for _, y in line.points]
        low, high = min(ys), max(ys)
        # From zero on, where that does not press the curves together.
        if 0 < low < 0.5 * high:
            low = 0.0
        if high - low < 1e-9 * max(abs(high), 1e-30) or high == low:
            low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        self.y_ticks = ticks(low, high)
        first, last = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1)
        self.x_ticks = [tick for tick in ticks(first, last) if first <= tick <= last and tick == round(tick)]
        # Room for a dot at the ends.
        space = 0.03 * (last - first)
        self.x = (first - space, last + space)
        self.y = (self.y_ticks[0], self.y_ticks[-1])

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the pixel of a value."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def drawn(self) -> str:
        """Returns grid lines and numbers."""
        parts = []
        step = self.y_ticks[1] - self.y_ticks[0]
        for tick in self.y_ticks:
            _, y = self.at(self.x[0], tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            label = number(0.0 if abs(tick) < 1e-6 * step else tick)
            parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        for tick in self.x_ticks:
            x, y = self.at(tick, self.y[0])
            parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{y + 4:.1f}"/>')
            parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{tick:.0f}</text>')
        return ''.join(parts)


def _curve(line: Line, axes: _Axes, dots: bool) -> str:
    points = line.points if dots else thin(line.points)
    pixels = [axes.at(x, y) for x, y in points]
    path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in pixels)
    drawn = f'<polyline {stroke(line.style)} points="{path}"><title>{escape(line.label)}</title></polyline>'
    if dots or len(points) == 1:
        drawn += ''.join(
            f'<circle class="d{line.style % COLORS}" cx="{px:.1f}" cy="{py:.1f}" r="3.5">'
            f'<title>{escape(line.label)}: {number(y)} at {number(x, 6)}</title></circle>'
            for (px, py), (x, y) in zip_equal(pixels, points)
        )
    return drawn


def bar_chart(title: str, bars: Sequence[tuple[str, float, int]], unit: str) -> str:
    """Returns a figure with one horizontal bar a (label, value, style), the value written at its end."""
    bars = [(label, value, style) for label, value, style in bars if math.isfinite(value)]
    if not bars:
        return ''
    row, left = 34, 6
    most = max(max(value for _, value, _ in bars), 1e-12)
    parts = []
    for index, (label, value, style) in enumerate(bars):
        y = TOP + index * row
        width = max(value, 0) / most * (WIDTH - left - 70)
        parts.append(f'<text class="axis" x="{left}" y="{y + 10}">{escape(label)}</text>')
        parts.append(
            f'<rect class="d{style % COLORS}" x="{left}" y="{y + 14}" width="{width:.1f}" height="11" rx="2"/>'
            f'<text class="axis" x="{left + width + 6:.1f}" y="{y + 24}">{number(value)}</text>'
        )
    height = TOP + row * len(bars) + 22
    parts.append(f'<text x="{left}" y="{height - 6}">{escape(unit)}</text>')
    described = ', '.join(f'{label} {number(value)}' for label, value, _ in bars)
    return figure(title, f'{title}: {described} {unit}', ''.join(parts), height)


def figure(title: str, description: str, drawn: str, height: int) -> str:
    """Returns an SVG with its caption."""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(description)}">{drawn}</svg></figure>'
    )
