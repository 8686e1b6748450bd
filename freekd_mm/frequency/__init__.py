"""Wavelet, cosine and Fourier transforms in pure torch; imports no MM package."""

from __future__ import annotations

from freekd_mm.frequency.dct import dct2d, idct2d
from freekd_mm.frequency.fourier import SpectralFilter2d, high_pass_mask
from freekd_mm.frequency.wavelet import (
    WaveletBands,
    WaveletBands1d,
    WaveletDetail,
    available_wavelets,
    dwt1d,
    dwt2d,
    idwt1d,
    idwt2d,
)

__all__ = [
    'SpectralFilter2d',
    'WaveletBands',
    'WaveletBands1d',
    'WaveletDetail',
    'available_wavelets',
    'dct2d',
    'dwt1d',
    'dwt2d',
    'high_pass_mask',
    'idct2d',
    'idwt1d',
    'idwt2d',
]
