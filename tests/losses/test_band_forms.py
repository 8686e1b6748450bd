"""The two ways to walk over Haar bands, in blocks of a matrix and level by level in buffers, against whole bands."""

from __future__ import annotations

import pytest
import torch

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, WaveletDetail, dwt2d, idwt2d
from freekd_mm.losses.bands import blocks, walk
from freekd_mm.losses.bands.distance import band_sizes

CASES = [
    ((2, 3, 8, 8), 3),
    ((2, 5, 13, 7), 3),
    ((1, 2, 1, 1), 2),
    ((3, 4, 9, 16), 4),
    ((2, 3, 12, 10), 1),
    ((2, 3, 1, 9), 3),
]


def case(shape, levels):
    generator = torch.Generator().manual_seed(0)
    make = lambda *size: torch.rand(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    student, teacher = (make(*shape) - 0.5 for _ in range(2))
    weights = [make(shape[0], 4, *size) for size in band_sizes(student, levels)]
    return student, teacher, weights


def listed(x, levels):
    """The bands (N, C, 4, h, w) of each level, each with its own low band."""
    return [
        torch.stack((found.low, found.high[-1].vertical, found.high[-1].horizontal, found.high[-1].diagonal), 2)
        for found in (dwt2d(x, level + 1) for level in range(levels))
    ]


def back(bands, shape):
    """The adjoint of :func:`listed`."""
    total = 0
    for level, part in enumerate(bands):
        low, vertical, horizontal, diagonal = part.unbind(2)
        zeros = [WaveletDetail(*(torch.zeros_like(b[:, :, 0]) for _ in range(3))) for b in bands[:level]]
        high = (*zeros, WaveletDetail(horizontal, vertical, diagonal))
        total = total + idwt2d(WaveletBands(low, high, (shape[2], shape[3])))
    return total


@pytest.mark.parametrize('size', [1, 50, 2**21])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize(('shape', 'levels'), CASES)
def test_sums_of_products_and_their_gradient(monkeypatch, size, weighted, shape, levels):
    for form in (walk, blocks):
        monkeypatch.setattr(form, 'BLOCK', size)
    student, teacher, weights = case(shape, levels)
    given = weights if weighted else None
    own, other = torch.rand(2, shape[1], levels, 4, dtype=torch.float64) - 0.5
    own[:, :-1, 0] = other[:, :-1, 0] = 0  # the low band counts at the last level alone
    wanted, gradients = [], []
    for level, (b, a) in enumerate(zip_equal(listed(student, levels), listed(teacher, levels))):
        weight = weights[level][:, None] if weighted else 1
        wanted.append(torch.stack([(weight * x * y).sum((0, 3, 4)) for x, y in ((b, b), (b, a), (a, a))], 2))
        gradients.append(weight * (own[:, level, :, None, None] * b - other[:, level, :, None, None] * a))
    wanted, gradient = torch.stack(wanted, 1), back(gradients, shape)
    out = torch.empty_like(student)
    sums = (
        walk.correlate(student, teacher, levels, given, lambda channels, _: (own[channels], other[channels]), out),
        blocks.correlate(student, teacher, levels, given),
    )
    outs = out, blocks.gradient(student, teacher, levels, given, torch.stack((own, other)))
    for found, out in zip_equal(sums, outs):
        torch.testing.assert_close(found[:, :, 1:], wanted[:, :, 1:])
        torch.testing.assert_close(found[:, -1], wanted[:, -1])
        torch.testing.assert_close(out, gradient)


@pytest.mark.parametrize('size', [1, 50, 2**21])
@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize(('shape', 'levels'), CASES)
def test_absolute_differences_and_their_gradient(monkeypatch, size, shared, shape, levels):
    for form in (walk, blocks):
        monkeypatch.setattr(form, 'BLOCK', size)
    student, teacher, weights = case(shape, levels)
    weights = [weight[:1] if shared else weight for weight in weights]
    for weight in weights[:-1]:
        weight[:, 0] = 0
    bands = listed(student - teacher, levels)
    pairs = [(weight[:, None], band) for weight, band in zip_equal(weights, bands)]
    wanted = sum((weight * band.abs()).sum((2, 3, 4)) for weight, band in pairs)
    gradient = back([weight * band.sign() for weight, band in pairs], shape)
    for form in (walk, blocks):
        out = torch.empty_like(student)
        torch.testing.assert_close(form.absolute(student, teacher, levels, weights, out), wanted)
        torch.testing.assert_close(out, gradient)
        torch.testing.assert_close(form.absolute(student, teacher, levels, weights, None), wanted)
