"""One HTML page with everything in it: no script, no request, readable in a light and in a dark scheme."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from freekd_mm.compat.versions import zip_equal
from freekd_mm.report.charts import COLORS, stroke
from freekd_mm.version import __version__

LIGHT = ('#2a6fb0', '#c8611f', '#23856a', '#8453b3', '#a67c00', '#bd3f74', '#4d6478', '#7a5636')
DARK = ('#6cabee', '#f0955c', '#5cc7a4', '#bd98ec', '#dcb84e', '#f086b2', '#a3b7ca', '#c9a079')

STYLE = """
:root { color-scheme: light dark; --back: #fdfdfc; --card: #ffffff; --text: #20262d; --soft: #5d6873;
  --line: #dfe3e7; --tint: #f3f5f7; --note: #fff7e3; --note-line: #e4c77a; %s }
@media (prefers-color-scheme: dark) { :root { --back: #14181c; --card: #1a1f25; --text: #e4e8ec; --soft: #9fabb7;
  --line: #323a43; --tint: #20272e; --note: #2c2717; --note-line: #75642f; %s } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 48px; }
h1, h2, h3, p, li, figcaption, .note { overflow-wrap: anywhere; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 4px; font-weight: 650; }
h2 { font-size: 1.2rem; margin: 40px 0 10px; padding-bottom: 5px; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 24px 0 8px; }
p { margin: 8px 0; max-width: 76ch; }
.soft { color: var(--soft); }
.note { background: var(--note); border-left: 3px solid var(--note-line); padding: 8px 14px; margin: 14px 0;
  max-width: 90ch; border-radius: 3px; }
.note ul { margin: 2px 0; padding-left: 20px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%%, 340px), 1fr)); gap: 14px; }
figure { margin: 0; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px 6px; }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: 4px; }
svg { width: 100%%; height: auto; display: block; }
svg svg { width: auto; }
svg text { fill: var(--soft); font-size: 11.5px; }
svg text.axis { fill: var(--text); }
.grid { stroke: var(--line); stroke-width: 1; }
.tick { stroke: var(--soft); stroke-width: 1; }
polyline, .key line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 8px 0 12px; }
ul.legend li { display: flex; align-items: center; gap: 7px; }
.key { width: 28px; height: 10px; flex: none; }
.box { width: 14px; height: 14px; border-radius: 3px; flex: none; border: 1px solid var(--line); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; background: var(--card); margin: 10px 0;
  max-width: 100%%; width: fit-content; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: 6px 14px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tr:last-child td, tr:last-child th { border-bottom: 0; }
thead th { background: var(--tint); font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
tbody th { font-weight: 600; min-width: 7.5em; }
td.code, code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .85rem; }
td.code { min-width: 11ch; max-width: 46ch; overflow-wrap: anywhere; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px;
  overflow-x: auto; }
details { margin: 10px 0; }
summary { cursor: pointer; font-weight: 600; }
.pictures { display: grid; gap: 12px; margin: 10px 0 18px; }
.picture img { width: 100%%; height: auto; display: block; border-radius: 5px; background: var(--tint); }
.picture img.pixels { image-rendering: pixelated; }
.picture figcaption { font-weight: 400; color: var(--soft); font-size: .85rem; margin: 0 0 3px; }
footer { margin-top: 48px; color: var(--soft); font-size: .85rem; }
@media (max-width: 600px) { main { padding: 18px 14px 32px; } th, td { padding: 5px 9px; } }
@media print { .chart, .picture { break-inside: avoid; } }
"""


def _colors(colors: Sequence[str]) -> str:
    return ' '.join(f'--c{index}: {color};' for index, color in enumerate(colors))


def _style() -> str:
    classes = ''.join(
        f'.s{index} {{ stroke: var(--c{index}); }} .d{index} {{ fill: var(--c{index}); }}\n' for index in range(COLORS)
    )
    return STYLE % (_colors(LIGHT), _colors(DARK)) + classes


class Page:
    """Collects sections and gives the page.

    Text is escaped by the functions of this module; what is added with :meth:`add` is HTML that they made.

    Args:
        title: Title of the page.
        subtitle: A line below it.
    """

    def __init__(self, title: str, subtitle: str = '') -> None:
        self.title, self.subtitle = title, subtitle
        self.parts: list[str] = []

    def section(self, heading: str, *parts: str) -> None:
        """Adds a section, unless it would be empty."""
        if any(parts):
            self.parts.append(f'<section><h2>{escape(heading)}</h2>{"".join(parts)}</section>')

    def add(self, *parts: str) -> None:
        """Adds HTML behind what is there."""
        self.parts += parts

    def html(self) -> str:
        """Returns the page."""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            # An icon of its own, so that no browser asks a server for one.
            '<link rel="icon" href="data:,">'
            f'<title>{escape(self.title)}</title><style>{_style()}</style></head>\n<body><main>'
            f'<h1>{escape(self.title)}</h1><p class="soft">{escape(self.subtitle)}</p>\n'
            + '\n'.join(self.parts)
            + f'\n<footer>Written by freekd_mm {escape(__version__)}. This file needs nothing else.</footer>'
            '</main></body></html>\n'
        )


def paragraph(text: str, soft: bool = False) -> str:
    """Returns a paragraph."""
    return f'<p{_class("soft" if soft else "")}>{escape(text)}</p>'


def heading(text: str) -> str:
    """Returns a heading within a section."""
    return f'<h3>{escape(text)}</h3>'


def notes(lines: Sequence[str]) -> str:
    """Returns a box of remarks; '' without any."""
    if not lines:
        return ''
    inner = ''.join(f'<li>{escape(line)}</li>' for line in lines)
    return f'<div class="note">{escape(lines[0]) if len(lines) == 1 else f"<ul>{inner}</ul>"}</div>'


def code(text: str) -> str:
    """Returns a block of commands."""
    return f'<pre>{escape(text)}</pre>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kinds: str = '') -> str:
    """Returns a table; the first column names the rows.

    Args:
        header: Names of the columns.
        rows: Cells as text.
        kinds: A letter a column: ``n`` for numbers (right), ``c`` for code, anything else for text.
    """
    names = {'n': 'n', 'c': 'code'}
    classes = [names.get(kind, '') for kind in kinds.ljust(len(header))]
    head = ''.join(
        f'<th scope="col"{_class(kind if kind == "n" else "")}>{escape(cell)}</th>'
        for cell, kind in zip_equal(header, classes)
    )
    body = ''
    for row in rows:
        cells = [f'<th scope="row">{escape(row[0])}</th>']
        cells += [f'<td{_class(kind)}>{escape(cell)}</td>' for cell, kind in zip_equal(row[1:], classes[1:])]
        body += f'<tr>{"".join(cells)}</tr>'
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ''


def legend(labels: Sequence[str], styles: Sequence[int] | None = None) -> str:
    """Returns what the colours of the curves mean."""
    items = ''.join(
        f'<li><svg class="key" viewBox="0 0 28 10"><line {stroke(style)} x1="1" x2="27" y1="5" y2="5"/></svg>'
        f'{escape(label)}</li>'
        for label, style in zip_equal(labels, range(len(labels)) if styles is None else styles)
    )
    return f'<ul class="legend">{items}</ul>'


def color_legend(colors: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Returns what the (R, G, B) colours of pictures mean."""
    items = ''.join(
        f'<li><span class="box" style="background:rgb({",".join(map(str, color))})"></span>{escape(label)}</li>'
        for label, color in colors
    )
    return f'<ul class="legend">{items}</ul>'


def charts(*figures: str) -> str:
    """Returns charts side by side, as many as fit."""
    shown = ''.join(figures)
    return f'<div class="charts">{shown}</div>' if shown else ''


def details(summary: str, inner: str) -> str:
    """Returns a part that is opened by a click."""
    return f'<details><summary>{escape(summary)}</summary>{inner}</details>'


def picture(file: bytes, caption: str, pixels: bool = False) -> str:
    """Returns a picture within the page.

    Args:
        file: A PNG or JPEG file.
        caption: Text above it, also its description.
        pixels: Enlarge it without smoothing.
    """
    data = base64.b64encode(file).decode('ascii')
    mime = 'image/png' if file.startswith(b'\x89PNG') else 'image/jpeg'
    kind = _class('pixels' if pixels else '')
    return (
        f'<figure class="picture"><figcaption>{escape(caption)}</figcaption>'
        f'<img{kind} alt="{escape(caption)}" src="data:{mime};base64,{data}"></figure>'
    )


def pictures(*figures: str, columns: int = 4, least: int = 160) -> str:
    """Returns pictures side by side.

    Args:
        *figures: The pictures.
        columns: As many in a row, where there is room.
        least: Width in pixels that each has at least.
    """
    width = f'max(min(100%, {least}px), (100% - {12 * (columns - 1)}px) / {columns})'
    style = f'grid-template-columns: repeat(auto-fill, minmax({width}, 1fr))'
    return f'<div class="pictures" style="{style}">{"".join(figures)}</div>'
