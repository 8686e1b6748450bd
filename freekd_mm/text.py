"""Text for people: tables in a terminal, lists of names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from freekd_mm.compat.versions import zip_equal


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Returns rows as aligned text."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip_equal(line, widths)).rstrip() for line in lines)


def some(names: Iterable[str], most: int = 6) -> str:
    """Returns the first names and the number of the others."""
    names = list(names)
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return (', '.join(names[:most]) or 'none') + more
