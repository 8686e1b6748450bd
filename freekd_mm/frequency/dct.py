"""Discrete cosine transforms of any size, orthonormal, equal to SciPy's ``dctn`` and ``idctn``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from freekd_mm.frequency.inputs import check_axes
from freekd_mm.tensors import constant, full_precision


def dct_matrix(size: int) -> Tensor:
    r"""Returns the orthonormal DCT-II matrix (size, size) in float64.

    :math:`D_{kn} = s_k \cos(\pi k (2n + 1) / 2N)` with :math:`s_0 = \sqrt{1/N}`, else :math:`\sqrt{2/N}`.
    """
    # The angle in float64: in float32 k (2n + 1) loses the digits that matter for large sizes.
    steps = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / (2 * size) * steps[:, None] * (2 * steps + 1)) * math.sqrt(2 / size)
    matrix[0] *= math.sqrt(0.5)
    return matrix


def _transform(x: Tensor, inverse: bool) -> Tensor:
    check_axes('x', x, '(..., H, W)')
    with torch.autocast(x.device.type, enabled=False):
        wide = full_precision(x)
        rows, columns = (constant(dct_matrix, wide, size) for size in x.shape[-2:])
        if inverse:
            rows, columns = rows.mT, columns.mT
        return (rows @ wide @ columns.mT).to(x.dtype)


def dct2d(x: Tensor) -> Tensor:
    """Orthonormal DCT-II over the last two axes, any size.

    Args:
        x: (..., H, W).
    """
    return _transform(x, inverse=False)


def idct2d(x: Tensor) -> Tensor:
    """Orthonormal DCT-III over the last two axes: the inverse of :func:`dct2d`.

    Args:
        x: (..., H, W).
    """
    return _transform(x, inverse=True)
