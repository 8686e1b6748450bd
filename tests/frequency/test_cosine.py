"""Cosine transforms against SciPy."""

from __future__ import annotations

import pytest
import scipy.fft
import torch
from torch_versions import HALF

from freekd_mm.frequency import dct2d, idct2d

DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
SIZES = [(1, 1), (1, 7), (2, 3), (7, 11), (13, 21), (25, 42), (100, 168), (3, 500)]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('size', SIZES)
def test_equals_scipy(size: tuple[int, int], device: str) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, device=device)
    forward = torch.from_numpy(scipy.fft.dctn(x.cpu().numpy(), type=2, axes=(-2, -1), norm='ortho'))
    inverse = torch.from_numpy(scipy.fft.dctn(x.cpu().numpy(), type=3, axes=(-2, -1), norm='ortho'))
    torch.testing.assert_close(dct2d(x).cpu(), forward, atol=1e-11, rtol=0)
    torch.testing.assert_close(idct2d(x).cpu(), inverse, atol=1e-11, rtol=0)
    torch.testing.assert_close(idct2d(dct2d(x)), x, atol=1e-11, rtol=0)
    torch.testing.assert_close(dct2d(x.float()).cpu(), forward.float(), atol=1e-4, rtol=0)


def test_any_rank_and_layout() -> None:
    x = torch.randn(2, 6, 8, 9, dtype=torch.float64)
    wanted = dct2d(x)
    torch.testing.assert_close(dct2d(x[1, 2]), wanted[1, 2])
    torch.testing.assert_close(dct2d(x.contiguous(memory_format=torch.channels_last)), wanted)
    torch.testing.assert_close(dct2d(x.mT), wanted.mT)
    assert dct2d(x[:0]).shape == (0, 6, 8, 9)


def test_gradients() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dct2d, x)
    assert torch.autograd.gradcheck(idct2d, x)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', HALF)
def test_half_precision_and_autocast(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(2, 3, 25, 42, device=device)
    with torch.autocast(device, dtype=dtype):
        torch.testing.assert_close(dct2d(x), dct2d(x.double()).float(), atol=1e-4, rtol=0)
    assert dct2d(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(
        idct2d(dct2d(x.to(dtype))).float(), x, atol=30 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps
    )


def test_errors() -> None:
    with pytest.raises(ValueError, match=r'\(\.\.\., H, W\) with H, W >= 1, but got \(5,\)'):
        dct2d(torch.zeros(5))
    with pytest.raises(ValueError, match=r'H, W >= 1, but got \(2, 0\)'):
        idct2d(torch.zeros(2, 0))
    with pytest.raises(TypeError, match=r'floating-point dtype, but got torch\.int64'):
        dct2d(torch.zeros(2, 2, dtype=torch.int64))
