"""Checks of what a user wrote: one wording for all errors, 'X should be Y, but got Z'."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the option nearest to ``name``, or an empty string."""
    near = get_close_matches(str(name), [str(option) for option in options], n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ''


def check_choice(what: str, value: Any, options: Iterable[Any]) -> None:
    """Raises ValueError unless the ``value`` of ``what``, an option as the user wrote it, is one of ``options``."""
    options = list(options)
    if value not in options:
        listed = ', '.join(repr(option) for option in options)
        raise ValueError(f'{what} should be one of {listed}, but got {value!r}.{did_you_mean(value, options)}')


def check_options(what: str, given: Iterable[str], options: Iterable[str]) -> None:
    """Raises ValueError for the first key in ``given`` that is not an option of ``what``."""
    options = list(options)
    for key in given:
        if key not in options:
            raise ValueError(
                f'{what} has no option {key!r}; available: {", ".join(options)}.{did_you_mean(key, options)}'
            )


def check_positive(what: str, value: Any, *, integer: bool = False, zero: bool = False) -> None:
    """Raises TypeError or ValueError unless ``value`` is a positive (or, with ``zero``, non-negative) number."""
    kinds = (int,) if integer else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f'{what} should be {"an integer" if integer else "a number"}, but got {value!r}')
    if value < 0 or (value == 0 and not zero) or value != value:
        raise ValueError(f'{what} should be {"at least 0" if zero else "greater than 0"}, but got {value!r}')


def check_least(what: str, value: int, least: int) -> None:
    """Raises ValueError if ``value`` is below the least that ``what`` may be."""
    if value < least:
        raise ValueError(f'{what} should be at least {least}, but got {value!r}')


def check_file(what: str, path: str | os.PathLike, folder: bool = False) -> None:
    """Raises FileNotFoundError, with what is there instead, unless the path is a file (or a folder)."""
    path = Path(path)
    if not (path.is_dir() if folder else path.is_file()):
        kind, other = ('folder', 'file') if folder else ('file', 'folder')
        there = f', which is a {other}' if path.exists() else beside(path)
        raise FileNotFoundError(f'{what} should be an existing {kind}, but got {str(path)!r}{there}')


def beside(path: Path) -> str:
    """Returns the end of an error about a missing path: what the nearest folder has, and which name is nearest."""
    while not path.parent.is_dir():
        if path == path.parent:  # a drive of Windows that is not there
            return ''
        path = path.parent
    names = sorted(item.name for item in path.parent.iterdir())
    alike = ', '.join([name for name in names if Path(name).suffix == path.suffix][:8])
    available = f'; available in {path.parent.absolute()}: {alike}' if alike else ''
    return f'{available}.{did_you_mean(path.name, names)}'
