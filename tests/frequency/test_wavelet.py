"""Wavelet transforms against PyWavelets and pytorch_wavelets."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor
from torch_versions import HALF, newer_torch

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, WaveletDetail, dwt1d, dwt2d, idwt2d

DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """PyWavelets warns of levels beyond its usual maximum, which are wanted here."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        yield


def random_cases(count: int) -> list[tuple[tuple[int, int], int]]:
    chance = random.Random(0)
    return [((chance.randint(1, 23), chance.randint(1, 23)), chance.randint(1, 5)) for _ in range(count)]


def tensors(bands: WaveletBands) -> list[Tensor]:
    return [bands.low, *itertools.chain(*bands.high)]


def assert_close(actual: list[Tensor], wanted: list[Tensor], **tolerance: float) -> None:
    assert len(actual) == len(wanted)
    for one, other in zip_equal(actual, wanted):
        torch.testing.assert_close(one, other, **tolerance)


def images(*shape: int, seed: int = 0, **options: object) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(**{'dtype': torch.float64, **options})


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('size', 'levels'), random_cases(30))
def test_dwt2d_equals_pywavelets(size: tuple[int, int], levels: int, device: str) -> None:
    x = images(2, 3, *size, device=device)
    bands = dwt2d(x, levels)
    low, *coarsest_first = pywt.wavedec2(x.cpu().numpy(), 'haar', mode='zero', level=levels)
    np.testing.assert_allclose(bands.low.cpu(), low, atol=1e-11)
    assert len(bands.high) == levels
    for detail, wanted in zip_equal(bands.high, reversed(coarsest_first)):
        for band, other in zip_equal((detail.horizontal, detail.vertical, detail.diagonal), wanted):
            np.testing.assert_allclose(band.cpu(), other, atol=1e-11)
    assert bands.shape == size
    torch.testing.assert_close(idwt2d(bands), x, atol=1e-10, rtol=0)


def test_idwt2d_of_any_bands_equals_pywavelets() -> None:
    like = dwt2d(images(1, 1, 7, 10), 2)
    low, *high = (images(*band.shape, seed=seed) for seed, band in enumerate(tensors(like)))
    bands = like._replace(low=low, high=(WaveletDetail(*high[:3]), WaveletDetail(*high[3:])))
    numpy = [tuple(band.numpy() for band in detail) for detail in reversed(bands.high)]
    wanted = pywt.waverec2([low.numpy(), *numpy], 'haar', mode='zero')[..., :7, :10]
    np.testing.assert_allclose(idwt2d(bands), wanted, atol=1e-9)


@pytest.mark.parametrize(('size', 'levels'), random_cases(10))
@pytest.mark.parametrize('dim', [-1, 1, -4])
def test_dwt1d_equals_pywavelets(size: tuple[int, int], levels: int, dim: int) -> None:
    x = images(size[0], size[1], 2, 5)
    found, high = dwt1d(x, levels, dim=dim)
    low, *coarsest_first = pywt.wavedec(x.numpy(), 'haar', mode='zero', level=levels, axis=dim)
    np.testing.assert_allclose(found, low, atol=1e-11)
    for band, wanted in zip_equal(high, reversed(coarsest_first)):
        np.testing.assert_allclose(band, wanted, atol=1e-11)


@pytest.mark.parametrize('size', [(100, 168), (25, 42), (13, 21), (7, 11), (1, 2)])
def test_haar_equals_pytorch_wavelets(size: tuple[int, int]) -> None:
    pytorch_wavelets = pytest.importorskip('pytorch_wavelets')
    x = images(2, 3, *size, dtype=torch.float32)
    bands = dwt2d(x, 3)
    low, high = pytorch_wavelets.DWTForward(J=3, wave='haar', mode='zero')(x)
    torch.testing.assert_close(bands.low, low, atol=1e-5, rtol=1e-5)
    for detail, wanted in zip_equal(bands.high, high):
        torch.testing.assert_close(torch.stack(detail, dim=2), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('size', [(4, 8), (5, 6), (3, 7), (1, 1), (1, 4)])
def test_gradients_of_both_directions(size: tuple[int, int], device: str) -> None:
    x = images(2, 2, *size, device=device).requires_grad_()
    like = dwt2d(x, 2)

    def synthesis(*bands: Tensor) -> Tensor:
        high = tuple(WaveletDetail(*bands[start : start + 3]) for start in (1, 4))
        return idwt2d(like._replace(low=bands[0], high=high))

    bands = [band.detach().requires_grad_() for band in tensors(like)]
    for function, inputs in ((lambda x: tensors(dwt2d(x, 2)), [x]), (synthesis, bands)):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize('used', range(7))
def test_gradient_of_one_band_alone(used: int) -> None:
    x = images(2, 2, 7, 10).requires_grad_()
    pytorch_wavelets = pytest.importorskip('pytorch_wavelets')
    low, high = pytorch_wavelets.DWTForward(J=2, wave='haar', mode='zero').double()(x)
    wanted = [low, *(band for detail in high for band in detail.unbind(2))][used]
    (expected,) = torch.autograd.grad(wanted.square().sum(), x)
    (grad,) = torch.autograd.grad(tensors(dwt2d(x, 2))[used].square().sum(), x)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize('layout', ['channels_last', 'transposed', 'strided', 'expanded'])
def test_layouts(layout: str) -> None:
    x = images(2, 6, 14, 22)
    x = {
        'channels_last': x.contiguous(memory_format=torch.channels_last),
        'transposed': x.mT,
        'strided': x[:, ::2, 1::3, ::2],
        'expanded': x[:1, :1].expand(3, 4, -1, -1),
    }[layout]
    before = x.clone()
    bands = dwt2d(x, 2)
    assert_close(tensors(bands), tensors(dwt2d(x.contiguous(), 2)))
    bands = bands._replace(low=bands.low.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(idwt2d(bands), x)
    torch.testing.assert_close(x, before, atol=0, rtol=0)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', HALF)
def test_half_precision_and_autocast(dtype: torch.dtype, device: str) -> None:
    x = images(2, 3, 25, 42, dtype=torch.float32, device=device)
    wanted = tensors(dwt2d(x, 3))
    with torch.autocast(device, dtype=dtype):
        assert_close(tensors(dwt2d(x, 3)), wanted)
        torch.testing.assert_close(idwt2d(dwt2d(x, 3)), x, atol=1e-5, rtol=1e-5)
    bands = dwt2d((100 * x).to(dtype), 3)
    assert all(band.dtype == dtype for band in tensors(bands))
    # Inside the transform nothing is rounded: what is left is the rounding of its input and of its output.
    assert_close(
        [band.float() for band in tensors(bands)],
        tensors(dwt2d((100 * x).to(dtype).float(), 3)),
        rtol=torch.finfo(dtype).eps,
        atol=1e-3,
    )
    assert idwt2d(bands).dtype == dtype
    torch.testing.assert_close(idwt2d(bands).float(), 100 * x, rtol=0.02, atol=600 * torch.finfo(dtype).eps)
    assert dwt1d(x.to(dtype), 2)[0].dtype == torch.float32


def test_empty_batch() -> None:
    x = torch.zeros(0, 3, 7, 9, requires_grad=True)
    back = idwt2d(dwt2d(x, 3))
    assert back.shape == x.shape
    back.sum().backward()
    assert x.grad.shape == x.shape
    assert dwt1d(x, 2, dim=1)[0].shape == (0, 1, 7, 9)


def test_haar_of_a_block_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    bands = dwt2d(x, 1)
    assert [band.item() for band in tensors(bands)] == [7.5, -4.5, -2.5, 1.5]
    assert bands._fields[:3] == ('low', 'high', 'shape')


@newer_torch('torch.compile', (2, 1))
def test_compiled_code_may_call_it() -> None:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        bands = dwt2d(x - y, 2)
        return bands.low.square().mean() + bands.high[0].vertical.abs().mean() + idwt2d(bands).sin().mean()

    compiled = torch.compile(loss, backend='aot_eager')
    x, y = images(2, 3, 9, 14).requires_grad_(), images(2, 3, 9, 14, seed=1)
    value, wanted = compiled(x, y), loss(x, y)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(wanted, x))


def test_errors_in_the_input() -> None:
    x = torch.zeros(1, 2, 8, 8)
    with pytest.raises(ValueError, match=r'\(N, C, H, W\) with H, W >= 1, but got \(2, 8, 8\)'):
        dwt2d(x[0])
    with pytest.raises(ValueError, match=r'H, W >= 1, but got \(1, 2, 0, 8\)'):
        dwt2d(x[:, :, :0])
    with pytest.raises(TypeError, match=r'floating-point dtype, but got torch\.int64'):
        dwt2d(x.long())
    with pytest.raises(TypeError, match=r'floating-point dtype, but got torch\.complex64'):
        dwt2d(x + 0j)
    with pytest.raises(TypeError, match=r'x should be a tensor .*, but got a list'):
        dwt2d([x])
    with pytest.raises(ValueError, match='levels should be greater than 0, but got 0'):
        dwt2d(x, levels=0)
    with pytest.raises(TypeError, match=r'levels should be an integer, but got 1\.5'):
        dwt1d(x, levels=1.5)
