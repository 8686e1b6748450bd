"""Checks and sizes shared by the transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def check_axes(what: str, x: Any, wanted: str, ndim: int | None = None) -> None:
    """Raises an error unless ``x`` is real and has ``ndim`` axes (at least 2 if None), the last two of length >= 1."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else f'a {type(x).__name__}'
        raise TypeError(f'{what} should be a tensor of a real floating-point dtype, but got {kind}')
    fits = x.ndim >= 2 if ndim is None else x.ndim == ndim
    if not fits or x.shape[-1] < 1 or x.shape[-2] < 1:
        raise ValueError(f'{what} should be of shape {wanted} with H, W >= 1, but got {tuple(x.shape)}')


def band_sizes(size: Sequence[int], depth: int) -> list[tuple[int, int]]:
    """Returns (h, w) of the Haar bands of each level of maps of a size (H, W), finest level first."""
    sizes = [(size[0], size[1])]
    for _ in range(depth):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes[1:]
