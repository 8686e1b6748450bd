"""What differs between the versions of Python and PyTorch that are supported, each with the version that ends it.

Standard library at import: this module stands before every other room.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

# Python 3.9 has it.
cache = functools.lru_cache(maxsize=None)

_END = object()


def zip_equal(*iterables: Iterable[Any]) -> Iterator[Any]:
    """Yields tuples as ``zip(..., strict=True)`` of Python 3.10 does: other lengths are an error.

    Raises:
        ValueError: One of them ends before the others.
    """
    for items in itertools.zip_longest(*iterables, fillvalue=_END):
        if any(item is _END for item in items):
            raise ValueError(f'zip_equal() should get iterables of one length, but one of {len(items)} is shorter')
        yield items


def remove_prefix(text: str, prefix: str) -> str:
    """Returns ``text`` without ``prefix`` in front; ``str.removeprefix`` of Python 3.9."""
    return text[len(prefix) :] if prefix and text.startswith(prefix) else text


def remove_suffix(text: str, suffix: str) -> str:
    """Returns ``text`` without ``suffix`` at its end; ``str.removesuffix`` of Python 3.9."""
    return text[: -len(suffix)] if suffix and text.endswith(suffix) else text


def pairwise(items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yields overlapping pairs; ``itertools.pairwise`` of Python 3.10."""
    first, second = itertools.tee(items)
    next(second, None)
    return zip(first, second)
