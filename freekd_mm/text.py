"""Text for people: tables and progress in a terminal; lists of names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from freekd_mm.compat.versions import zip_equal


def table(rows: Sequence[Sequence[str]], header: Sequence[str], markdown: bool = False) -> str:
    """Returns rows as aligned text, or as a table of Markdown that reads as well."""
    # A bar in a cell would begin a new one.
    lines = [[cell.replace('|', r'\|') if markdown else cell for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip_equal(*lines)]
    if markdown:
        lines.insert(1, ['-' * max(width, 3) for width in widths])
    aligned = (map(str.ljust, line, widths) for line in lines)
    return '\n'.join(f'| {" | ".join(line)} |' if markdown else '  '.join(line).rstrip() for line in aligned)


def track(items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
    """Yields the items, with a progress bar on the standard error; in a log only its end is shown."""
    from rich.console import Console
    from rich.progress import track

    return track(items, label, total, console=Console(stderr=True))


def short_names(paths: Sequence[str | os.PathLike], least: int = 1) -> list[str]:
    """Returns the last parts of paths, at least so many and as many as tell them apart; suffixes only if they do."""
    plain = [Path(path).with_suffix('') for path in paths]
    parts = [path.parts for path in (plain if len(set(plain)) == len(set(paths)) else map(Path, paths))]
    for count in range(least, max(least, *map(len, parts)) + 1):
        names = ['_'.join(own[-count:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def some(names: Iterable[str], most: int = 6) -> str:
    """Returns the first names and the number of the others."""
    names = list(names)
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return (', '.join(names[:most]) or 'none') + more
