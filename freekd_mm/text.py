"""Text for people: tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from freekd_mm.compat.versions import zip_equal


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Returns rows as aligned text."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip_equal(line, widths)).rstrip() for line in lines)
