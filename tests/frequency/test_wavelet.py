"""Wavelet transforms against PyWavelets, pytorch_wavelets and ptwt."""

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
from freekd_mm.frequency import (
    WaveletBands,
    WaveletDetail,
    available_wavelets,
    dwt1d,
    dwt2d,
    idwt1d,
    idwt2d,
)

DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """PyWavelets warns of levels beyond its usual maximum, which are wanted here."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        yield


def random_cases(count: int) -> list[tuple[tuple[int, int], int, str]]:
    chance = random.Random(0)
    wavelets = ['haar', 'haar', 'haar', 'db1', 'db2', 'db7', 'sym4', 'coif2', 'bior2.4', 'rbio3.1', 'bior1.3']
    return [
        ((chance.randint(1, 23), chance.randint(1, 23)), chance.randint(1, 5), chance.choice(wavelets))
        for _ in range(count)
    ]


def tensors(bands: WaveletBands) -> list[Tensor]:
    return [bands.low, *itertools.chain(*bands.high)]


def assert_close(actual: list[Tensor], wanted: list[Tensor], **tolerance: float) -> None:
    assert len(actual) == len(wanted)
    for one, other in zip_equal(actual, wanted):
        torch.testing.assert_close(one, other, **tolerance)


def images(*shape: int, seed: int = 0, **options: object) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(**{'dtype': torch.float64, **options})


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('size', 'levels', 'wavelet'), random_cases(60))
def test_dwt2d_equals_pywavelets(size: tuple[int, int], levels: int, wavelet: str, device: str) -> None:
    x = images(2, 3, *size, device=device)
    bands = dwt2d(x, levels, wavelet)
    low, *coarsest_first = pywt.wavedec2(x.cpu().numpy(), wavelet, mode='zero', level=levels)
    np.testing.assert_allclose(bands.low.cpu(), low, atol=1e-11)
    assert len(bands.high) == levels
    for detail, wanted in zip_equal(bands.high, reversed(coarsest_first)):
        for band, other in zip_equal((detail.horizontal, detail.vertical, detail.diagonal), wanted):
            np.testing.assert_allclose(band.cpu(), other, atol=1e-11)
    assert bands.shape == size
    torch.testing.assert_close(idwt2d(bands), x, atol=1e-10, rtol=0)


@pytest.mark.parametrize('wavelet', available_wavelets())
def test_idwt_of_any_bands_equals_pywavelets(wavelet: str) -> None:
    like = dwt2d(images(1, 1, 7, 10), 2, wavelet)
    low, *high = (images(*band.shape, seed=seed) for seed, band in enumerate(tensors(like)))
    bands = like._replace(low=low, high=(WaveletDetail(*high[:3]), WaveletDetail(*high[3:])))
    numpy = [tuple(band.numpy() for band in detail) for detail in reversed(bands.high)]
    wanted = pywt.waverec2([low.numpy(), *numpy], wavelet, mode='zero')[..., :7, :10]
    np.testing.assert_allclose(idwt2d(bands), wanted, atol=1e-9)

    like1d = dwt1d(images(3, 13), 2, wavelet)
    flat = like1d._replace(low=images(*like1d.low.shape), high=tuple(images(*high.shape) for high in like1d.high))
    wanted = pywt.waverec([flat.low.numpy(), *(high.numpy() for high in reversed(flat.high))], wavelet, mode='zero')
    np.testing.assert_allclose(idwt1d(flat), wanted[..., :13], atol=1e-9)


@pytest.mark.parametrize(('size', 'levels', 'wavelet'), random_cases(20))
@pytest.mark.parametrize('dim', [-1, 1, -4])
def test_dwt1d_equals_pywavelets(size: tuple[int, int], levels: int, wavelet: str, dim: int) -> None:
    x = images(size[0], size[1], 2, 5)
    bands = dwt1d(x, levels, wavelet, dim=dim)
    low, *coarsest_first = pywt.wavedec(x.numpy(), wavelet, mode='zero', level=levels, axis=dim)
    np.testing.assert_allclose(bands.low, low, atol=1e-11)
    for band, wanted in zip_equal(bands.high, reversed(coarsest_first)):
        np.testing.assert_allclose(band, wanted, atol=1e-11)
    torch.testing.assert_close(idwt1d(bands), x, atol=1e-10, rtol=0)


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
@pytest.mark.parametrize('wavelet', ['haar', 'db2'])
@pytest.mark.parametrize('size', [(4, 8), (5, 6), (3, 7), (1, 1), (1, 4)])
def test_gradients_of_both_directions(size: tuple[int, int], wavelet: str, device: str) -> None:
    x = images(2, 2, *size, device=device).requires_grad_()
    like = dwt2d(x, 2, wavelet)

    def synthesis(*bands: Tensor) -> Tensor:
        high = tuple(WaveletDetail(*bands[start : start + 3]) for start in (1, 4))
        return idwt2d(like._replace(low=bands[0], high=high))

    bands = [band.detach().requires_grad_() for band in tensors(like)]
    assert torch.autograd.gradcheck(lambda x: tensors(dwt2d(x, 2, wavelet)), x)
    assert torch.autograd.gradcheck(synthesis, bands)
    if wavelet == 'haar':
        assert torch.autograd.gradgradcheck(lambda x: tensors(dwt2d(x, 2)), x)
        assert torch.autograd.gradgradcheck(synthesis, bands)


@pytest.mark.parametrize('dim', [-1, 0, 1])
def test_gradients_in_1d(dim: int) -> None:
    x = images(3, 4, 5).requires_grad_()
    like = dwt1d(x, 2, dim=dim)
    bands = [band.detach().requires_grad_() for band in (like.low, *like.high)]

    def analysis(x: Tensor) -> tuple[Tensor, ...]:
        bands = dwt1d(x, 2, dim=dim)
        return (bands.low, *bands.high)

    def synthesis(low: Tensor, *high: Tensor) -> Tensor:
        return idwt1d(like._replace(low=low, high=high))

    for function, inputs in ((analysis, [x]), (synthesis, bands)):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize('used', range(7))
def test_gradient_of_one_band_alone(used: int) -> None:
    x = images(2, 2, 7, 10).requires_grad_()
    ptwt = pytest.importorskip('ptwt')
    low, *high = ptwt.wavedec2(x, 'haar', mode='zero', level=2)
    wanted = [low, *itertools.chain(*reversed(high))][used]
    (expected,) = torch.autograd.grad(wanted.square().sum(), x)
    (grad,) = torch.autograd.grad(tensors(dwt2d(x, 2))[used].square().sum(), x)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize('wavelet', ['haar', 'db2'])
@pytest.mark.parametrize('layout', ['channels_last', 'transposed', 'strided', 'expanded'])
def test_layouts(layout: str, wavelet: str) -> None:
    x = images(2, 6, 14, 22)
    x = {
        'channels_last': x.contiguous(memory_format=torch.channels_last),
        'transposed': x.mT,
        'strided': x[:, ::2, 1::3, ::2],
        'expanded': x[:1, :1].expand(3, 4, -1, -1),
    }[layout]
    before = x.clone()
    bands = dwt2d(x, 2, wavelet)
    assert_close(tensors(bands), tensors(dwt2d(x.contiguous(), 2, wavelet)))
    bands = bands._replace(low=bands.low.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(idwt2d(bands), x)
    torch.testing.assert_close(x, before, atol=0, rtol=0)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('wavelet', ['haar', 'db2'])
@pytest.mark.parametrize('dtype', HALF)
def test_half_precision_and_autocast(dtype: torch.dtype, wavelet: str, device: str) -> None:
    x = images(2, 3, 25, 42, dtype=torch.float32, device=device)
    wanted = tensors(dwt2d(x, 3, wavelet))
    with torch.autocast(device, dtype=dtype):
        assert_close(tensors(dwt2d(x, 3, wavelet)), wanted)
        torch.testing.assert_close(idwt2d(dwt2d(x, 3, wavelet)), x, atol=1e-5, rtol=1e-5)
    bands = dwt2d((100 * x).to(dtype), 3, wavelet)
    assert all(band.dtype == dtype for band in tensors(bands))
    # Inside the transform nothing is rounded: what is left is the rounding of its input and of its output.
    assert_close(
        [band.float() for band in tensors(bands)],
        tensors(dwt2d((100 * x).to(dtype).float(), 3, wavelet)),
        rtol=torch.finfo(dtype).eps,
        atol=1e-3,
    )
    assert idwt2d(bands).dtype == dtype
    torch.testing.assert_close(idwt2d(bands).float(), 100 * x, rtol=0.02, atol=600 * torch.finfo(dtype).eps)
    flat = dwt1d(x.to(dtype), 2, wavelet)
    assert flat.low.dtype == idwt1d(flat).dtype == dtype


@pytest.mark.parametrize('wavelet', ['haar', 'db2'])
def test_empty_batch(wavelet: str) -> None:
    x = torch.zeros(0, 3, 7, 9, requires_grad=True)
    back = idwt2d(dwt2d(x, 3, wavelet))
    assert back.shape == x.shape
    back.sum().backward()
    assert x.grad.shape == x.shape
    assert idwt1d(dwt1d(x, 2, wavelet, dim=1)).shape == x.shape


def test_haar_of_a_block_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    bands = dwt2d(x, 1)
    assert [band.item() for band in tensors(bands)] == [7.5, -4.5, -2.5, 1.5]
    assert bands._fields[:3] == ('low', 'high', 'shape')


class RoundTrip(torch.nn.Module):
    def forward(self, x: Tensor) -> tuple[WaveletBands, Tensor, Tensor]:
        bands = dwt2d(x, 3)
        weaker = bands._replace(low=bands.low * 0.5)
        return bands, idwt2d(weaker), idwt1d(dwt1d(x, 2, dim=-2))


@newer_torch('torch.export that is not strict')
@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('size', [(25, 42), (1, 1)])
def test_export(size: tuple[int, int], strict: bool) -> None:
    x = images(2, 3, *size)
    program = torch.export.export(RoundTrip(), (x,), strict=strict)
    bands, *others = program.module()(x)
    wanted, *wanted_others = RoundTrip()(x)
    assert_close([*tensors(bands), *others], [*tensors(wanted), *wanted_others])
    assert isinstance(bands, WaveletBands)
    assert bands.shape == size


class Analysis(torch.nn.Module):
    def forward(self, x: Tensor) -> WaveletBands:
        return dwt2d(x, 2)


@newer_torch('torch.export.Dim')
def test_export_of_a_size_that_changes() -> None:
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        Analysis(), (images(2, 3, 25, 42),), dynamic_shapes={'x': {0: auto, 2: auto, 3: auto}}
    )
    for shape in ((3, 3, 26, 43), (1, 3, 64, 96), (2, 3, 33, 17)):
        x = images(*shape)
        bands = program.module()(x)
        assert_close(tensors(bands), tensors(dwt2d(x, 2)))
        assert bands.shape == shape[-2:]


@newer_torch('compilation of autograd functions')
def test_compile() -> None:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        bands = dwt2d(x - y, 2)
        return bands.low.square().mean() + bands.high[0].vertical.abs().mean() + idwt2d(bands).sin().mean()

    compiled = torch.compile(loss, backend='aot_eager', fullgraph=True)
    x, y = images(2, 3, 9, 14).requires_grad_(), images(2, 3, 9, 14, seed=1)
    value, wanted = compiled(x, y), loss(x, y)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(wanted, x))


def test_errors_in_the_input() -> None:
    x = torch.zeros(1, 2, 8, 8)
    with pytest.raises(ValueError, match=r"one of bior1\.1, .*sym20, but got 'har'\. Did you mean 'haar'\?"):
        dwt2d(x, wavelet='har')
    with pytest.raises(ValueError, match="but got 'morl'"):
        dwt1d(x, wavelet='morl')
    with pytest.raises(ValueError, match=r'\(N, C, H, W\) with H, W >= 1, but got \(2, 8, 8\)'):
        dwt2d(x[0])
    with pytest.raises(ValueError, match=r'H, W >= 1, but got \(1, 2, 0, 8\)'):
        dwt2d(x[:, :, :0])
    with pytest.raises(TypeError, match=r'floating-point dtype, but got torch\.int64'):
        dwt2d(x.long())
    with pytest.raises(TypeError, match=r'floating-point dtype, but got torch\.complex64'):
        dwt1d(x + 0j)
    with pytest.raises(TypeError, match='x should be a tensor, but got a list'):
        dwt2d([x])
    with pytest.raises(ValueError, match='levels should be greater than 0, but got 0'):
        dwt2d(x, levels=0)
    with pytest.raises(TypeError, match=r'levels should be an integer, but got 1\.5'):
        dwt1d(x, levels=1.5)
    with pytest.raises(ValueError, match=r'dim should be an axis of x .*, but got 4'):
        dwt1d(x, dim=4)
    with pytest.raises(ValueError, match=r'a length of at least 1, but got -1 for \(1, 2, 8, 0\)'):
        dwt1d(x[..., :0])


def test_errors_in_bands_that_do_not_fit() -> None:
    bands = dwt2d(torch.zeros(1, 2, 9, 8), 2)
    first, second = bands.high
    with pytest.raises(ValueError, match=r'bands\.low should be of shape \(1, 2, 3, 2\) .*, but got \(1, 2, 3, 3\)'):
        idwt2d(bands._replace(low=torch.zeros(1, 2, 3, 3)))
    with pytest.raises(ValueError, match=r'bands\.high\[1\]\.vertical should be of shape \(1, 2, 3, 2\)'):
        idwt2d(bands._replace(high=(first, second._replace(vertical=second.vertical[..., :1]))))
    with pytest.raises(ValueError, match=r'bands\.high\[0\]\.horizontal should be of shape'):
        idwt2d(bands._replace(high=(second, first)))
    with pytest.raises(ValueError, match=r'bands\.high\[0\]\.horizontal should be of shape .*12, 8'):
        idwt2d(bands._replace(shape=(12, 8)))
    with pytest.raises(ValueError, match=r"wavelet 'db3'.*, but got \(1, 2, 5, 4\)"):
        idwt2d(bands._replace(wavelet='db3'))
    with pytest.raises(ValueError, match=r'bands\.high\[0\] should hold 3 bands, but got 2'):
        idwt2d(bands._replace(high=(first[:2], second)))
    with pytest.raises(ValueError, match=r'number of levels in bands\.high should be greater than 0'):
        idwt2d(bands._replace(high=()))
    with pytest.raises(TypeError, match=r'bands\.high\[0\]\.diagonal should be torch.float32 .*got torch\.float64'):
        idwt2d(bands._replace(high=(first._replace(diagonal=first.diagonal.double()), second)))
    flat = dwt1d(torch.zeros(2, 9), 2)
    with pytest.raises(ValueError, match=r'bands\.high\[1\] should be of shape \(2, 3\)'):
        idwt1d(flat._replace(high=(flat.high[0], flat.high[0])))
    with pytest.raises(ValueError, match=r'bands\.low should be of shape \(2, 3\)'):
        idwt1d(flat._replace(low=torch.zeros(2, 4)))
