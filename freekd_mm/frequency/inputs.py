"""Checks and sizes shared by the transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def check_floating(what: str, x: Any) -> None:
    """Raises TypeError unless ``x`` is a tensor of a real floating-point dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f'{what} should be a tensor, but got a {type(x).__name__}')
    if not x.is_floating_point():
        raise TypeError(f'{what} should be of a real floating-point dtype, but got {x.dtype}')


def check_axes(what: str, x: Tensor, wanted: str, ndim: int | None = None) -> None:
    """Raises an error unless ``x`` is real and has ``ndim`` axes (at least 2 if None), the last two of length >= 1."""
    check_floating(what, x)
    fits = x.ndim >= 2 if ndim is None else x.ndim == ndim
    if not fits or x.shape[-1] < 1 or x.shape[-2] < 1:
        raise ValueError(f'{what} should be of shape {wanted} with H, W >= 1, but got {tuple(x.shape)}')


def band_sizes(size: Sequence[int], depth: int) -> list[tuple[int, int]]:
    """Returns (h, w) of the Haar bands of each level of maps of a size (H, W), finest level first."""
    sizes = [(size[0], size[1])]
    for _ in range(depth):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes[1:]


def usable_levels(size: Sequence[int], most: int, min_positions: float, whole: bool = False) -> int:
    """Returns how many Haar levels of maps of a size (H, W) leave so many positions in each band.

    With ``whole`` only positions within the map count, and there has to be one.
    """
    sizes = [(size[0] >> level, size[1] >> level) for level in range(1, most + 1)] if whole else band_sizes(size, most)
    return sum(height * width >= max(min_positions, 1) for height, width in sizes)
