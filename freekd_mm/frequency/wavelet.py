"""Discrete wavelet transforms in 1D and 2D with boundary 'zero', names and values as in PyWavelets.

Haar uses the adds and subtracts of :mod:`freekd_mm.frequency.haar`, every other wavelet goes through ptwt, which is
imported only when it is needed, because it is slow to import.
Inputs in half precision are transformed in float32 and the bands returned in the input's dtype.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.checks import check_positive, did_you_mean
from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency.haar import HaarAnalysis2d, HaarSynthesis2d
from freekd_mm.frequency.inputs import check_axes, check_floating
from freekd_mm.tensors import full_precision


class WaveletDetail(NamedTuple):
    """High bands of one level of a 2D transform, each (N, C, h, w).

    Attributes:
        horizontal: Differences along the height, which respond to horizontal edges (PyWavelets' cH).
        vertical: Differences along the width, which respond to vertical edges (cV).
        diagonal: Differences along both (cD).
    """

    horizontal: Tensor
    vertical: Tensor
    diagonal: Tensor


class WaveletBands(NamedTuple):
    """Bands of a 2D transform.

    Attributes:
        low: Low band of the last level (N, C, h, w).
        high: One :class:`WaveletDetail` per level, finest first.
        shape: (H, W) of the transformed tensor.
        wavelet: Name of the wavelet.
    """

    low: Tensor
    high: tuple[WaveletDetail, ...]
    shape: tuple[int, int]
    wavelet: str = 'haar'

    def inside(self) -> WaveletBands:
        """Returns the positions whose Haar blocks lie within the map, as the losses count them; at least one."""
        high, h, w = [], *self.shape
        for detail in self.high:
            h, w = max(h // 2, 1), max(w // 2, 1)
            high.append(WaveletDetail(*(band[..., :h, :w] for band in detail)))
        return self._replace(low=self.low[..., :h, :w], high=tuple(high))


class WaveletBands1d(NamedTuple):
    """Bands of a 1D transform.

    Attributes:
        low: Low band of the last level.
        high: One high band per level, finest first.
        length: Length of the transformed axis.
        dim: The transformed axis.
        wavelet: Name of the wavelet.
    """

    low: Tensor
    high: tuple[Tensor, ...]
    length: int
    dim: int = -1
    wavelet: str = 'haar'


def _optional(name: str) -> Any:
    """Imports what only wavelets other than Haar need: freekd_mm does not install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"wavelet should be 'haar' here, since {name} cannot be imported ({error}). Others need ptwt and "
            f'PyWavelets: {sys.executable} -m pip install ptwt PyWavelets'
        ) from error


def available_wavelets() -> tuple[str, ...]:
    """Returns the names of all discrete wavelets."""
    return tuple(_optional('pywt').wavelist(kind='discrete'))


def is_haar(wavelet: str) -> bool:
    """Tells whether ``wavelet`` is Haar; raises ValueError if it is no discrete wavelet."""
    if wavelet in ('haar', 'db1'):
        return True
    names = available_wavelets()
    if wavelet not in names:
        listed = ', '.join(names)
        raise ValueError(f'wavelet should be one of {listed}, but got {wavelet!r}.{did_you_mean(wavelet, names)}')
    return False


def band_length(length: int, wavelet: str) -> int:
    """Returns the length of a band of a signal of ``length``."""
    if is_haar(wavelet):
        return (length + 1) // 2
    return (length + _optional('pywt').Wavelet(wavelet).dec_len - 1) // 2


def dwt2d(x: Tensor, levels: int = 3, wavelet: str = 'haar') -> WaveletBands:
    r"""Wavelet transform over the last two axes.

    With Haar, for the four pixels a b / c d of each 2 x 2 block (an odd size gets a zero row or column at its end):

    .. math::
        low &= (a + b + c + d) / 2 \\
        horizontal &= (a + b - c - d) / 2 \\
        vertical &= (a - b + c - d) / 2 \\
        diagonal &= (a - b - c + d) / 2

    and the low band again at each further level. Bands of a difference are the difference of the bands, so a loss
    needs one transform of ``student - teacher``.

    Args:
        x: (N, C, H, W), any H, W >= 1.
        levels: Number of levels, also beyond the maximum that PyWavelets recommends.
        wavelet: A discrete wavelet of PyWavelets, see :func:`available_wavelets`.
    """
    check_axes('x', x, '(N, C, H, W)', ndim=4)
    check_positive('levels', levels, integer=True)
    low = full_precision(x)
    if is_haar(wavelet):
        low, *bands = HaarAnalysis2d.apply(low, levels)
        high = [WaveletDetail(*bands[start : start + 3]) for start in range(0, len(bands), 3)]
    else:
        ptwt = _optional('ptwt')
        with torch.autocast(x.device.type, enabled=False):
            low, *coarsest_first = ptwt.wavedec2(low, wavelet, mode='zero', level=levels)
        high = [WaveletDetail(*details) for details in reversed(coarsest_first)]
    high = [WaveletDetail(*(band.to(x.dtype) for band in details)) for details in high]
    return WaveletBands(low.to(x.dtype), tuple(high), (x.shape[-2], x.shape[-1]), wavelet)


def idwt2d(bands: WaveletBands) -> Tensor:
    """Inverse of :func:`dwt2d`: returns (N, C, H, W).

    Args:
        bands: What :func:`dwt2d` returned, changed or not.
    """
    check_axes('bands.low', bands.low, '(N, C, h, w)', ndim=4)
    named = []
    for level, details in enumerate(bands.high):
        if len(details) != 3:
            raise ValueError(f'bands.high[{level}] should hold 3 bands, but got {len(details)}')
        named.append({f'bands.high[{level}].{name}': band for name, band in zip(WaveletDetail._fields, details)})
    _check_bands(bands.low, named, bands.shape, (-2, -1), bands.wavelet)
    low, high = full_precision(bands.low), [[full_precision(band) for band in details] for details in bands.high]
    if is_haar(bands.wavelet):
        x = HaarSynthesis2d.apply(bands.shape, low, *(band for details in high for band in details))
        return x.to(bands.low.dtype)
    ptwt = _optional('ptwt')
    with torch.autocast(low.device.type, enabled=False):
        coarsest_first = [ptwt.WaveletDetailTuple2d(*details) for details in reversed(high)]
        x = ptwt.waverec2((low, *coarsest_first), bands.wavelet)
    return x[..., : bands.shape[0], : bands.shape[1]].to(bands.low.dtype)


def _check_bands(
    low: Tensor, named: Sequence[dict[str, Tensor]], lengths: Sequence[int], dims: Sequence[int], wavelet: str
) -> None:
    """Raises TypeError or ValueError unless the bands fit together; ``lengths`` are those of the axes ``dims``."""
    check_positive('the number of levels in bands.high', len(named), integer=True)
    source, wanted = tuple(lengths), list(low.shape)
    for level, details in enumerate(named):
        lengths = [band_length(length, wavelet) for length in lengths]
        for dim, length in zip_equal(dims, lengths):
            wanted[dim] = length
        for what, band in {**details, **({'bands.low': low} if level == len(named) - 1 else {})}.items():
            check_floating(what, band)
            if (band.dtype, band.device) != (low.dtype, low.device):
                raise TypeError(
                    f'{what} should be {low.dtype} on {low.device} as bands.low, but got {band.dtype} on {band.device}'
                )
            if list(band.shape) != wanted:
                raise ValueError(
                    f'{what} should be of shape {tuple(wanted)} (wavelet {wavelet!r}, transformed size {source}), '
                    f'but got {tuple(band.shape)}'
                )


def dwt1d(x: Tensor, levels: int = 1, wavelet: str = 'haar', dim: int = -1) -> WaveletBands1d:
    """Wavelet transform along one axis, e.g. over the classes of logits.

    Args:
        x: Tensor of any rank >= 1; an axis of odd length is zero-padded at its end.
        levels: Number of levels.
        wavelet: A discrete wavelet of PyWavelets, see :func:`available_wavelets`.
        dim: The axis, e.g. 1 for per-pixel logits (N, classes, H, W).
    """
    check_floating('x', x)
    check_positive('levels', levels, integer=True)
    if not -x.ndim <= dim < x.ndim or not x.shape[dim]:
        raise ValueError(f'dim should be an axis of x with a length of at least 1, but got {dim} for {tuple(x.shape)}')
    low, high = full_precision(x).movedim(dim, -1), []
    if is_haar(wavelet):
        for _ in range(levels):
            low = low * 0.5**0.5
            low = F.pad(low, (0, 1)) if low.shape[-1] % 2 else low
            even, odd = low.unflatten(-1, (-1, 2)).unbind(-1)
            low = even + odd
            high.append(even - odd)
    else:
        with torch.autocast(x.device.type, enabled=False):
            low, *coarsest_first = _optional('ptwt').wavedec(low, wavelet, mode='zero', level=levels)
        high = coarsest_first[::-1]
    low, *high = (band.to(x.dtype).movedim(-1, dim) for band in (low, *high))
    return WaveletBands1d(low, tuple(high), x.shape[dim], dim, wavelet)


def idwt1d(bands: WaveletBands1d) -> Tensor:
    """Inverse of :func:`dwt1d`.

    Args:
        bands: What :func:`dwt1d` returned, changed or not.
    """
    named = [{f'bands.high[{level}]': band} for level, band in enumerate(bands.high)]
    _check_bands(bands.low, named, [bands.length], [bands.dim], bands.wavelet)
    low, *high = (full_precision(band).movedim(bands.dim, -1) for band in (bands.low, *bands.high))
    if is_haar(bands.wavelet):
        for detail in reversed(high):
            low = low[..., : detail.shape[-1]]
            low = torch.stack((low + detail, low - detail), -1).flatten(-2) * 0.5**0.5
    else:
        with torch.autocast(low.device.type, enabled=False):
            low = _optional('ptwt').waverec([low, *reversed(high)], bands.wavelet)
    return low[..., : bands.length].movedim(-1, bands.dim).to(bands.low.dtype)
