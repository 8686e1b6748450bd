"""Options and features of several levels: one value for all of them, or one per level."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any, Tuple, Union

from torch import Tensor

from freekd_mm.checks import check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.tensors import Levels, as_levels

Sizes = Union[Tuple[int, int], typing.Sequence[Tuple[int, int]], None]


def per_level(what: str, value: int | Sequence[int], num_levels: int) -> tuple[int, ...]:
    """Returns one positive integer per level from an integer (the same for all) or a sequence."""
    values = (value,) * num_levels if isinstance(value, int) else tuple(value)
    for item in values:
        check_positive(what, item, integer=True)
    if len(values) != num_levels:
        raise ValueError(f'{what} should be an integer or {num_levels} integers, one per level, but got {value!r}')
    return values


def count_levels(num_levels: int | None, *channels: int | Sequence[int]) -> int:
    """Returns ``num_levels``, or if it is None the length of the first sequence of channels, else 1."""
    if num_levels is not None:
        check_positive('num_levels', num_levels, integer=True)
        return num_levels
    return next((len(value) for value in channels if not isinstance(value, int)), 1)


def sizes_per_level(size: Sizes, num_levels: int) -> tuple[tuple[int, int] | None, ...]:
    """Returns one (H, W) or None per level from None, from (H, W) for all levels, or from a sequence of (H, W)."""
    if size is None:
        return (None,) * num_levels
    pairs: list[Any] = [size] * num_levels if all(isinstance(item, int) for item in size) else list(size)
    if len(pairs) != num_levels or any(isinstance(pair, int) or len(pair) != 2 for pair in pairs):
        raise ValueError(f'size should be (H, W) or {num_levels} pairs (H, W), one per level, but got {size!r}')
    return tuple((height, width) for height, width in pairs)


def check_levels(name: str, features: Levels, channels: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Returns the levels as a tuple; raises ValueError unless each is (N, channels[level], H, W)."""
    levels = as_levels(features)
    if len(levels) != len(channels):
        raise ValueError(f'{name}: features should have {len(channels)} levels, but got {len(levels)}')
    for index, (level, expected) in enumerate(zip_equal(levels, channels)):
        if level.ndim != 4 or level.shape[1] != expected:
            raise ValueError(
                f'{name}: level {index} should be of shape (N, {expected}, H, W), but got {tuple(level.shape)}'
            )
    return levels
