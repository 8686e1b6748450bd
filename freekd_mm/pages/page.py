"""One HTML page with everything in it, and its line charts: no script, no request, readable in light and dark mode."""

from __future__ import annotations

import base64
import io
import math
import re
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Tuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from freekd_mm.compat.versions import zip_equal
from freekd_mm.files import write_kept
from freekd_mm.pictures import jpeg
from freekd_mm.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = typing.Sequence[Tuple[float, float]]

#: The colours of lines, ``--c0`` to ``--c7`` of the page, in light and in dark mode.
LIGHT = ('#2a6fb0', '#c8611f', '#23856a', '#8453b3', '#a67c00', '#bd3f74', '#4d6478', '#7a5636')
DARK = ('#6cabee', '#f0955c', '#5cc7a4', '#bd98ec', '#dcb84e', '#f086b2', '#a3b7ca', '#c9a079')
#: What else a chart is drawn with, and what the page calls it.
GRID, INK = '#dfe3e7', '#5d6874'
NAMES = {**{color: f'--c{index}' for index, color in enumerate(LIGHT)}, GRID: '--line', INK: '--soft'}
#: They tell the second and third round of the colours apart.
DASHES = ('', '7 4', '2 3')
#: More points than these are averaged: they would be closer than a pixel.
MOST_POINTS = 300
#: A line whose first values are so many times higher than nearly all others is cut off.
SPIKE = 4.0
STYLE = {
    'font.size': 11,
    'text.color': INK,
    'axes.labelcolor': INK,
    'axes.edgecolor': GRID,
    'axes.grid': True,
    'axes.grid.axis': 'y',
    'axes.spines.right': False,
    'axes.spines.top': False,
    'grid.color': GRID,
    'xtick.color': INK,
    'ytick.color': INK,
}

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
# Names of files and settings: a line may end where a part does, not within a word.
_environment.filters['breakable'] = lambda text: Markup(
    re.sub(r'([/_=]|\.(?=\w+\.))(?=\w)', r'\1<wbr>', str(escape(text)))
)
_environment.globals.update(light=LIGHT, dark=DARK, version=__version__)
#: The macros of ``page.html``: they escape text and return markup.
parts: Any = _environment.get_template('page.html').module


def picture(image: np.ndarray, caption: str) -> Markup:
    """Returns an RGB picture (H, W, 3) within the page, as JPEG."""
    return parts.picture(caption, f'data:image/jpeg;base64,{base64.b64encode(jpeg(image)).decode("ascii")}')


def write_page(out: str | Path, title: str, subtitle: str, found: Sequence[Markup]) -> Path:
    """Writes the page and returns its path."""
    now = time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())
    return write_kept(Path(out), parts.page(title, f'{subtitle}, written {now}', found).lstrip())


class Line(NamedTuple):
    """One curve."""

    label: str
    points: Points  # (x, y) in the order of x
    style: int = 0  # number of its colour and dash; the same for one run in all charts

    @property
    def dash(self) -> str:
        """How it is dashed, as in SVG."""
        return DASHES[self.style // len(LIGHT) % len(DASHES)]


def line_chart(title: str, lines: Sequence[Line], x_label: str, y_label: str, dots: bool = False) -> Markup:
    """Returns a chart with its caption and the names of its lines; an empty text if there is nothing to draw."""
    # What is not finite is left out. Dots mark each point: for few, exact values.
    lines = [line for line in lines if len(thin(line.points))]
    if not lines:
        return Markup()
    figure = draw(lines, x_label, y_label, dots)
    top = figure.axes[0].get_ylim()[1]
    if any(y > top for line in lines for _, y in line.points):
        title = f'{title} (cut off above {top:.2g})'
    description = f'{title}: {y_label} over {x_label} of {", ".join(line.label for line in lines)}'
    legend = [(line.label, line.style % len(LIGHT), line.dash) for line in lines]
    return parts.chart(title, description, svg(figure), legend)


def draw(lines: Sequence[Line], x_label: str, y_label: str, dots: bool = False, legend: bool = False) -> Figure:
    """Returns the figure of :func:`line_chart`, here also with names of its lines."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout='constrained')
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        curves = [thin(line.points) for line in lines]
        for line, points in zip_equal(lines, curves):
            axes.plot(
                *points.T,
                color=LIGHT[line.style % len(LIGHT)],
                linestyle=(0, tuple(map(float, line.dash.split()))) if line.dash else '-',
                marker='o' if dots or len(points) == 1 else None,
                markersize=4,
                label=line.label,
            )
        if legend:
            # Below the plot: with many lines it would hide them.
            figure.legend(fontsize='x-small', ncols=2, loc='outside lower center')
        values = np.concatenate(curves)[:, 1]
        typical = float(np.quantile(values, 0.95))
        # A few values would press all others flat.
        if len(values) >= 20 and 0 < SPIKE * typical < values.max():
            axes.set_ylim(min(values.min(), 0), 1.25 * typical)
    return figure


def thin(points: Points) -> np.ndarray:
    """Returns the finite points (N, 2), neighbours averaged so that at most MOST_POINTS are left."""
    found = np.array([point for point in points if all(map(math.isfinite, point))], float).reshape(-1, 2)
    if len(found) <= MOST_POINTS:
        return found
    return np.stack([block.mean(0) for block in np.array_split(found, MOST_POINTS)])


def svg(figure: Figure) -> Markup:
    """Returns a figure as an element of a page: as wide as its place, in the colours and letters of the page."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'freekd_mm'}):
        nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
        figure.savefig(file, format='svg', transparent=True, metadata=nothing)
    text = file.getvalue()
    view = re.search('viewBox="[^"]*"', text)[0]  # type: ignore[index]
    text = f'<svg {view}>{text[text.index("<defs>") :]}'
    text = re.sub(r'<style.*?</style>|<!--.*?-->| id="[\w.]+_\d+"', '', text, flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", 'system-ui, sans-serif', ' '.join(text.split()))
    for color, name in NAMES.items():
        text = text.replace(color, f'var({name})')
    return Markup(text)


def rgb(figure: Figure) -> np.ndarray:
    """Returns a figure as an RGB picture (H, W, 3) on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
