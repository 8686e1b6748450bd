"""Learnable global filters in the Fourier domain, with only real parameters."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.frequency.inputs import check_axes
from freekd_mm.tensors import constant, full_precision

Mode = Literal['lowrank', 'depthwise', 'dense']
Region = Literal['symmetric', 'code']


def _is_low(size: int, cut: float, region: Region) -> Tensor:
    """Returns (size,), zero frequency first: 1 where a frequency of one axis is low, else 0."""
    centre = size // 2
    frequency = torch.arange(-centre, size - centre).roll(-centre)
    if region == 'code':
        reach = int(cut * centre)
        low = (frequency >= -reach) & (frequency < reach)
    else:
        low = frequency.abs() < cut * size / 2
    return low.float()


def high_pass_mask(height: int, width: int, cut: float, region: Region) -> Tensor:
    """Returns (height, width), zero frequency first: 0 where both frequencies are low, else 1.

    Args:
        height: Rows of the full spectrum.
        width: Columns of the full spectrum.
        cut: Part of the half-width that is low, e.g. 0.1.
        region: ``'symmetric'``: |f| < cut, with f in units of the half-width; zero frequency always is low.
            ``'code'``: rows and columns ``centre - r`` to ``centre + r - 1`` of the centred spectrum, with
            ``r = int(cut * (size // 2))``, as in FAM-KD's released code; empty for sizes below 2 / cut.
    """
    return 1 - _is_low(height, cut, region)[:, None] * _is_low(width, cut, region)


def _half_mask(height: int, width: int, cut: float, region: Region) -> Tensor:
    """Returns the mask for ``rfft2`` (height, width // 2 + 1)."""
    # Of a mask that is not symmetric the real part of the full inverse keeps the mean at f and -f.
    mask = high_pass_mask(height, width, cut, region)
    return ((mask + _negate_frequencies(mask, -2, -1)) / 2)[:, : width // 2 + 1]


def _negate_frequencies(x: Tensor, *dims: int) -> Tensor:
    """Puts the value of frequency -f at f along ``dims`` (zero frequency first)."""
    return x.flip(dims).roll((1,) * len(dims), dims)


def _interpolation(knots: int, positions: Tensor) -> Tensor:
    """Returns (len(positions), knots): linear interpolation of ``knots`` equidistant samples, positions in [0, 1]."""
    return (1 - (positions[:, None] * (knots - 1) - torch.arange(knots)).abs()).clamp(min=0)


def _rows(height: int, knots: int) -> Tensor:
    """Returns what takes the rows of a grid to frequencies of ``rfft2``, (2, 1, height, 2 * knots).

    Column 0, and the last one of an even width, hold f and -f both; irfft2 does not define its result for values there
    that are not hermitian. So for each row of the grid there are two: one for the other columns, and one for these,
    where the real part (0) is made even and the imaginary part (1) odd.
    """
    rows = _interpolation(knots, torch.fft.fftfreq(height, dtype=torch.float64) + 0.5)
    mirrored = _negate_frequencies(rows, 0)
    return torch.stack([torch.stack((rows, (rows + sign * mirrored) / 2), 2).flatten(1) for sign in (1, -1)])[:, None]


def _columns(width: int, knots: int) -> Tensor:
    """Returns what takes columns of a grid to the other columns, and to those that hold f and -f, (knots, 2 * w)."""
    columns = _interpolation(knots, torch.fft.rfftfreq(width, dtype=torch.float64) * 2).mT
    both = (2 * torch.arange(width // 2 + 1)) % width == 0
    return torch.cat((columns * ~both, columns * both), 1)


class SpectralFilter2d(nn.Module):
    r"""Learnable global filter of FAM-KD: :math:`y_o = \mathrm{Re}\, F^{-1}(M \sum_i K_{oi} F(x_i))`.

    F is the 2D Fourier transform and M the high-pass. Parameters are real (a complex number is stored as two), so
    that DDP, AMP, ``.half()`` and every optimizer handle them. Computes in float32 (float64 for float64 inputs) and
    returns the input's dtype.

    - ``'dense'``: K (C_out, C_in, H, W) of its own for one input size, with a full FFT, as in the paper. 256 to 256
      channels at 100 x 168 would take 2.2 G parameters: for small sizes and for parity.
    - ``'lowrank'``: :math:`K_{oi}(f) = \sum_r E_{or}\, g_r(f)\, R_{ri}`: R takes C_in channels to ``rank``, each of
      these has a filter g, E takes them to C_out.
    - ``'depthwise'``: :math:`K_{oi}(f) = E_{oi}\, g_i(f)`: one filter per input channel, then a mix.

    ``'lowrank'`` and ``'depthwise'`` keep g on a small grid of frequencies and interpolate it linearly to the
    spectrum of the size at hand. The real part of the output is taken by making K hermitian, which halves the
    FFT. Both start with g = 1: a 1x1 convolution followed by the high-pass.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        mode: ``'lowrank'``, ``'depthwise'`` or ``'dense'``.
        grid_size: Stored (rows, columns): rows span the vertical frequencies from minus to plus the highest one,
            columns the horizontal ones from zero to the highest. Not used by ``'dense'``.
        rank: Number of filters of ``'lowrank'``.
        size: (H, W) of the inputs of ``'dense'``.
        high_pass: Frequencies below this part of the half-width are zeroed (the paper's cut is 0.1); None keeps all.
        region: ``'symmetric'`` or ``'code'``, see :func:`high_pass_mask`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mode: Mode = 'lowrank',
        *,
        grid_size: tuple[int, int] = (33, 17),
        rank: int = 64,
        size: tuple[int, int] | None = None,
        high_pass: float | None = 0.1,
        region: Region = 'symmetric',
    ) -> None:
        super().__init__()
        check_positive('in_channels', in_channels, integer=True)
        check_positive('out_channels', out_channels, integer=True)
        check_choice('mode', mode, ('lowrank', 'depthwise', 'dense'))
        check_choice('region', region, ('symmetric', 'code'))
        if high_pass is not None:
            check_positive('high_pass', high_pass)
            if high_pass >= 1:
                raise ValueError(f'high_pass should be below 1, the highest frequency, but got {high_pass}')
        if (mode == 'dense') != (size is not None):
            raise ValueError(
                f"size should be (H, W) of the inputs in mode 'dense', else None, but got {size} with mode {mode!r}"
            )
        self.in_channels, self.out_channels, self.mode = in_channels, out_channels, mode
        self.high_pass, self.region = high_pass, region
        self.size = None if size is None else _check_pair('size', size, 1)
        if self.size is not None:
            weight = torch.empty(out_channels, in_channels, *self.size, 2)
            # As in the released code: both parts of K in [0, 1 / (C_in C_out)).
            self.weight = nn.Parameter(nn.init.uniform_(weight, 0, 1 / (in_channels * out_channels)))
            return
        check_positive('rank', rank, integer=True)
        filters = rank if mode == 'lowrank' else in_channels
        if mode == 'lowrank':
            self.reduce = _mixing(rank, in_channels)
        self.expand = _mixing(out_channels, filters)
        grid = torch.ones(filters, *_check_pair('grid_size', grid_size, 2))
        # Axis 0: real and imaginary part.
        self.spectrum = nn.Parameter(torch.stack((grid, torch.zeros_like(grid))))

    def forward(self, x: Tensor) -> Tensor:
        """Filters x (N, C_in, H, W) and returns (N, C_out, H, W) in the dtype of x."""
        check_axes('x', x, f'(N, {self.in_channels}, H, W)', ndim=4)
        if x.shape[1] != self.in_channels:
            raise ValueError(f'x should have {self.in_channels} channels, but got {x.shape[1]} in {tuple(x.shape)}')
        if x.shape[0] == 0:
            # An FFT of an empty tensor is an error; one added zero keeps all parameters in the graph, as DDP wants.
            return self.forward(F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)))[:0]
        with torch.autocast(x.device.type, enabled=False):
            y = self._dense(full_precision(x)) if self.mode == 'dense' else self._separable(full_precision(x))
        return y.to(x.dtype)

    def _dense(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[-2:])
        if size != self.size:
            raise ValueError(
                f"x should be of the size {self.size} given to mode 'dense', but got {size}: set probe_size of the "
                "model to the images' size if it is another; modes 'lowrank' and 'depthwise' take any size"
            )
        weight = torch.view_as_complex(self.weight.to(x.dtype))
        y = torch.einsum('nihw,oihw->nohw', torch.fft.fft2(x), weight)
        if self.high_pass is not None:
            y = y * constant(high_pass_mask, x, *size, self.high_pass, self.region)
        return torch.fft.ifft2(y).real

    def _separable(self, x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        if self.mode == 'lowrank':
            x = torch.einsum('ri,nihw->nrhw', self.reduce.to(x.dtype), x)
        x = torch.fft.irfft2(torch.fft.rfft2(x) * self.transfer(*size, x), s=size)
        return torch.einsum('or,nrhw->nohw', self.expand.to(x.dtype), x)

    def transfer(self, height: int, width: int, like: Tensor) -> Tensor:
        """Returns M g (filters, height, width // 2 + 1), complex, for ``rfft2`` (not in mode ``'dense'``)."""
        grid = self.spectrum.to(like.dtype)
        rows, columns = constant(_rows, like, height, grid.shape[2]), constant(_columns, like, width, grid.shape[3])
        real, imaginary = rows @ (grid @ columns).view(*grid.shape[:2], 2 * grid.shape[2], -1)
        if self.high_pass is not None:
            mask = constant(_half_mask, like, height, width, self.high_pass, self.region)
            real, imaginary = real * mask, imaginary * mask
        return torch.complex(real, imaginary)


def _mixing(outputs: int, inputs: int) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(outputs, inputs), std=1 / math.sqrt(inputs)))


def _check_pair(what: str, pair: tuple[int, int], least: int) -> tuple[int, int]:
    if len(pair) != 2 or any(not isinstance(value, int) or value < least for value in pair):
        raise ValueError(f'{what} should be two integers of at least {least}, but got {pair!r}')
    return (pair[0], pair[1])
