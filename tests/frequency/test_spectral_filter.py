"""The spectral filter against a complex implementation written from the formula."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_two_ranks
from scipy.interpolate import RegularGridInterpolator
from torch import nn
from torch_versions import HALF, newer_torch

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import SpectralFilter2d, high_pass_mask

DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
MODES = ['lowrank', 'depthwise', 'dense']


def make(mode: str, size: tuple[int, int] = (7, 10), **options: object) -> SpectralFilter2d:
    torch.manual_seed(0)
    module = SpectralFilter2d(3, 4, mode, **{'size': size if mode == 'dense' else None, 'rank': 2, **options})
    if mode != 'dense':
        nn.init.normal_(module.spectrum)
    return module


def naive(x: np.ndarray, kernel: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Re IFFT(mask * sum_i K_oi FFT(x_i)) with x (N, I, H, W), K (O, I, H, W), mask (H, W) of the centred spectrum."""
    out = np.zeros((x.shape[0], kernel.shape[0], *x.shape[2:]))
    for image in range(x.shape[0]):
        for o in range(kernel.shape[0]):
            spectrum = sum(kernel[o, i] * np.fft.fft2(x[image, i]) for i in range(x.shape[1]))
            out[image, o] = np.fft.ifft2(np.fft.ifftshift(np.fft.fftshift(spectrum) * mask)).real
    return out


def code_mask(height: int, width: int, cut: float) -> np.ndarray:
    """The released code's high-pass on the centred spectrum."""
    mask = np.ones((height, width))
    cy, cx = int(height / 2), int(width / 2)
    ry, rx = int(cut * cy), int(cut * cx)
    mask[cy - ry : cy + ry, cx - rx : cx + rx] = 0
    return mask


def paper_mask(height: int, width: int, cut: float) -> np.ndarray:
    """Both frequencies below ``cut`` of the half-width, on the centred spectrum."""
    y = np.abs(np.fft.fftshift(np.fft.fftfreq(height))) * 2
    x = np.abs(np.fft.fftshift(np.fft.fftfreq(width))) * 2
    return 1.0 - np.outer(y < cut, x < cut)


def full_kernel(module: SpectralFilter2d, height: int, width: int) -> np.ndarray:
    """K (O, I, H, W) of a module with a stored grid, by SciPy's interpolation and hermitian symmetry."""
    real, imaginary = module.spectrum.detach().double().numpy()
    knots = np.linspace(-1, 1, real.shape[-2]), np.linspace(0, 1, real.shape[-1])
    y, x = np.meshgrid(np.fft.fftfreq(height) * 2, np.abs(np.fft.fftfreq(width)) * 2, indexing='ij')
    filters = np.zeros((len(real), height, width), dtype=complex)
    for index in range(len(real)):
        for part, unit in ((real[index], 1), (imaginary[index], 1j)):
            filters[index] += unit * RegularGridInterpolator(knots, part)((y, x))
    mirrored = np.roll(filters[:, ::-1, ::-1], 1, axis=(1, 2)).conj()
    column = np.arange(width)
    filters = np.where(column <= width // 2, filters, mirrored)
    own = (2 * column) % width == 0
    filters = np.where(own, (filters + np.roll(filters[:, ::-1, ::-1], 1, axis=(1, 2)).conj()) / 2, filters)
    expand = module.expand.detach().double().numpy()
    reduce = module.reduce.detach().double().numpy() if module.mode == 'lowrank' else np.eye(module.in_channels)
    return np.einsum('or,rhw,ri->oihw', expand, filters, reduce)


@pytest.mark.parametrize('size', [(1, 1), (1, 6), (7, 10), (20, 21), (41, 40)])
@pytest.mark.parametrize(('region', 'reference'), [('code', code_mask), ('symmetric', paper_mask)])
def test_high_pass_masks(size: tuple[int, int], region: str, reference: object) -> None:
    for cut in (0.1, 0.3):
        mask = high_pass_mask(*size, cut, region)
        np.testing.assert_array_equal(np.fft.fftshift(mask), reference(*size, cut))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('region', 'reference'), [('code', code_mask), ('symmetric', paper_mask)])
@pytest.mark.parametrize('size', [(1, 1), (7, 10), (20, 21), (23, 40)])
@pytest.mark.parametrize('mode', MODES)
def test_equals_the_complex_formula(
    mode: str, size: tuple[int, int], region: str, reference: object, device: str
) -> None:
    module = make(mode, size, region=region, high_pass=0.25).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    if mode == 'dense':
        weight = module.weight.detach().numpy()
        kernel = weight[..., 0] + 1j * weight[..., 1]
    else:
        kernel = full_kernel(module, *size)
    wanted = naive(x.numpy(), kernel, reference(*size, 0.25))
    np.testing.assert_allclose(module.to(device)(x.to(device)).detach().cpu(), wanted, atol=1e-12)


@pytest.mark.parametrize('mode', ['lowrank', 'depthwise'])
def test_starts_as_a_high_pass_of_a_mix(mode: str) -> None:
    module = SpectralFilter2d(3, 4, mode, rank=2, high_pass=None).double()
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    mix = module.expand @ module.reduce if mode == 'lowrank' else module.expand
    torch.testing.assert_close(module(x), torch.einsum('oi,nihw->nohw', mix, x))
    high = SpectralFilter2d(3, 4, mode, rank=2)(x.float())
    torch.testing.assert_close(high.mean(dim=(-2, -1)), torch.zeros(2, 4), atol=1e-5, rtol=0)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('size', [(4, 6), (5, 5), (1, 2)])
def test_gradients(mode: str, size: tuple[int, int]) -> None:
    module = make(mode, size, **({} if mode == 'dense' else {'grid_size': (3, 2)})).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    # gradcheck changes the parameters in place, so that the module sees it.
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (x, *module.parameters()))


def test_the_default_is_small_and_takes_any_size() -> None:
    module = SpectralFilter2d(256, 256)
    assert sum(parameter.numel() for parameter in module.parameters()) < 1_500_000
    module = SpectralFilter2d(3, 4)
    for size in ((100, 168), (13, 21), (7, 11), (1, 1), (2, 3)):
        assert module(torch.randn(1, 3, *size)).shape == (1, 4, *size)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('batch', [0, 1])
def test_every_parameter_gets_a_gradient(mode: str, batch: int) -> None:
    module = make(mode)
    x = torch.randn(batch, 3, 7, 10, requires_grad=True)
    out = module(x)
    assert out.shape == (batch, 4, 7, 10)
    out.square().sum().backward()
    assert x.grad.shape == x.shape
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert not any(parameter.is_complex() for parameter in module.parameters())


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('mode', MODES)
def test_half_precision_and_autocast(mode: str, dtype: torch.dtype, device: str) -> None:
    module = make(mode).to(device)
    x = torch.randn(2, 3, 7, 10, device=device)
    wanted = module(x)
    with torch.autocast(device, dtype=dtype):
        torch.testing.assert_close(module(x), wanted)
    low = copy.deepcopy(module).to(dtype)
    out = low(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), wanted, rtol=0.05, atol=20 * torch.finfo(dtype).eps)
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in low.parameters())


@pytest.mark.parametrize('mode', MODES)
def test_layouts_copies_and_state_dict(mode: str, tmp_path: Path) -> None:
    module = make(mode)
    x = torch.randn(2, 3, 7, 10)
    wanted = module(x)
    torch.testing.assert_close(module(x.contiguous(memory_format=torch.channels_last)), wanted)
    torch.testing.assert_close(module(x.mT.contiguous().mT), wanted)
    torch.testing.assert_close(copy.deepcopy(module)(x), wanted, atol=0, rtol=0)
    torch.save(module.state_dict(), tmp_path / 'filter.pth')
    other = SpectralFilter2d(3, 4, mode, rank=2, size=(7, 10) if mode == 'dense' else None)
    other.load_state_dict(torch.load(tmp_path / 'filter.pth', weights_only=True))
    torch.testing.assert_close(other(x), wanted, atol=0, rtol=0)


@newer_torch('torch.compile', (2, 0))
@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('mode', MODES)
def test_compile(mode: str) -> None:
    module = make(mode)
    x = torch.randn(2, 3, 7, 10)
    compiled = torch.compile(module, backend='aot_eager')
    torch.testing.assert_close(compiled(x), module(x))
    compiled(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def train_on_one_rank(rank: int, folder: Path) -> None:
    wrapped = nn.parallel.DistributedDataParallel(make('lowrank'))
    x = torch.load(folder / 'x.pt', weights_only=True)
    # The second rank's batch is of another size, as in multi-scale training.
    wrapped(x[:2] if rank == 0 else x[2:, :, :5]).square().mean().backward()
    torch.save([parameter.grad for parameter in wrapped.parameters()], folder / f'grad{rank}.pt')


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 7, 10)
    torch.save(x, tmp_path / 'x.pt')
    run_two_ranks(train_on_one_rank, tmp_path)
    module = make('lowrank')
    ((module(x[:2]).square().mean() + module(x[2:, :, :5]).square().mean()) / 2).backward()
    for rank in range(2):
        grads = torch.load(tmp_path / f'grad{rank}.pt', weights_only=True)
        for grad, parameter in zip_equal(grads, module.parameters()):
            torch.testing.assert_close(grad, parameter.grad)


def test_errors() -> None:
    with pytest.raises(
        ValueError, match=r"mode should be one of 'lowrank', .*but got 'low_rank'. Did you mean 'lowrank'"
    ):
        SpectralFilter2d(3, 4, 'low_rank')
    with pytest.raises(ValueError, match="region should be one of 'symmetric', 'code', but got 'paper'"):
        SpectralFilter2d(3, 4, region='paper')
    with pytest.raises(ValueError, match=r"size should be \(H, W\) .* in mode 'dense', else None, but got None"):
        SpectralFilter2d(3, 4, 'dense')
    with pytest.raises(ValueError, match=r"in mode 'dense', else None, but got \(4, 4\) with mode 'lowrank'"):
        SpectralFilter2d(3, 4, size=(4, 4))
    with pytest.raises(ValueError, match=r'grid_size should be two integers of at least 2, but got \(1, 5\)'):
        SpectralFilter2d(3, 4, grid_size=(1, 5))
    with pytest.raises(ValueError, match='high_pass should be below 1'):
        SpectralFilter2d(3, 4, high_pass=1.0)
    with pytest.raises(ValueError, match='in_channels should be greater than 0, but got 0'):
        SpectralFilter2d(0, 4)
    module = SpectralFilter2d(3, 4)
    with pytest.raises(ValueError, match='x should have 3 channels, but got 5'):
        module(torch.zeros(1, 5, 4, 4))
    with pytest.raises(ValueError, match=r'\(N, 3, H, W\) with H, W >= 1, but got \(3, 4, 4\)'):
        module(torch.zeros(3, 4, 4))
    with pytest.raises(TypeError, match=r'floating-point dtype, but got torch\.int64'):
        module(torch.zeros(1, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"size \(7, 10\) given to mode 'dense', but got \(4, 4\)"):
        make('dense')(torch.zeros(1, 3, 4, 4))
