"""The two forms of the Haar transform, and the passes of the losses over them, against whole bands."""

from __future__ import annotations

import pytest
import torch
from loss_checks import within

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, WaveletDetail, blocks, dwt2d, haar, idwt2d, walk
from freekd_mm.frequency.inputs import band_sizes
from freekd_mm.losses import WaveletLoss
from freekd_mm.losses.bands import distance
from freekd_mm.losses.bands.distance import Level

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
    weights = [make(shape[0], 4, *size) for size in band_sizes(shape[2:], levels)]
    return student, teacher, weights


def listed(x, levels):
    """The bands (N, C, 4, h, w) of each level, each with its own low band, in neither of the two forms."""
    found = []
    for level in range(levels):
        low, *_, horizontal, vertical, diagonal = haar.traced_analysis2d(x, level + 1)
        found.append(torch.stack((low, vertical, horizontal, diagonal), 2))
    return found


def back(bands, shape):
    """The adjoint of :func:`listed`."""
    total = 0
    for level, part in enumerate(bands):
        low, vertical, horizontal, diagonal = part.unbind(2)
        zeros = [WaveletDetail(*(torch.zeros_like(b[:, :, 0]) for _ in range(3))) for b in bands[:level]]
        high = (*zeros, WaveletDetail(horizontal, vertical, diagonal))
        total = total + idwt2d(WaveletBands(low, high, (shape[2], shape[3])))
    return total


@pytest.fixture(params=[1, 50, 2**21])
def forms(request, monkeypatch):
    """Sets each form in turn, with parts of one size."""
    for module in (walk, blocks):
        monkeypatch.setattr(module, 'BLOCK', request.param)

    def each():
        for form in (walk.Walk, blocks.Blocks):
            monkeypatch.setattr(haar, 'haar_form', form)
            monkeypatch.setattr(distance, 'haar_form', form)
            yield form

    return each


@pytest.mark.parametrize(('shape', 'levels'), CASES)
def test_both_forms_are_one_transform(forms, shape, levels):
    x, _, _ = case(shape, levels)
    wanted = listed(x, levels)
    for form in forms():
        bands = dwt2d(x, levels)
        for level, detail in enumerate(bands.high):
            found = torch.stack((detail.vertical, detail.horizontal, detail.diagonal), 2)
            torch.testing.assert_close(found, wanted[level][:, :, 1:])
        torch.testing.assert_close(idwt2d(bands), x)
        transform = form(shape, levels, x)
        for images, channels in transform.parts():
            part = form((*x[images, channels].shape[:2], *shape[2:]), levels, x)
            packed = part.analyse(x[images, channels])
            values = [band.clone() for band in packed]
            again = part.pack([[band.clone() for band in four] for four in part.unpack(packed)])
            back_again, wanted_back = (
                transform.synthesise(given, torch.zeros_like(x), (images, channels))[images, channels]
                for given in (again, values)
            )
            torch.testing.assert_close(back_again, wanted_back)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize(('shape', 'levels'), CASES)
def test_sums_of_products_and_their_gradient(forms, weighted, shape, levels):
    student, teacher, weights = case(shape, levels)
    own, other = torch.rand(2, shape[1], levels, 4, dtype=torch.float64) - 0.5
    own[:, :-1, 0] = other[:, :-1, 0] = 0  # the low band counts at the last level alone
    wanted, gradients = [], []
    for level, (b, a) in enumerate(zip_equal(listed(student, levels), listed(teacher, levels))):
        b, a = (within(x, level + 1, shape[2:]) for x in (b, a))
        weight = weights[level][:, None] if weighted else 1
        wanted.append(torch.stack([(weight * x * y).sum((0, 3, 4)) for x, y in ((b, b), (b, a), (a, a))], 2))
        gradients.append(weight * (own[:, level, :, None, None] * b - other[:, level, :, None, None] * a))
    wanted, gradient = torch.stack(wanted, 1), back(gradients, shape)
    wanted[:, :-1, 0] = 0
    given = [Level(teacher, 0.0, [0.0] * levels, weights if weighted else [])]
    for form in forms():
        torch.testing.assert_close(distance.sums_of([student], given, levels)[0], wanted)
        (out,) = distance.gradients_of([student], given, torch.stack((own, other)).unsqueeze(1))
        torch.testing.assert_close(out, gradient)
        if form is walk.Walk:
            seen = []

            def factors(level, channels, sums, seen=seen):
                seen.append(sums.clone())
                return torch.stack((own[channels], other[channels]))

            sums, (out,) = distance._pass([student], given, levels, True, factors)
            torch.testing.assert_close(torch.cat(seen), wanted)
            torch.testing.assert_close(sums[0], wanted)
            torch.testing.assert_close(out, gradient)


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize(('shape', 'levels'), CASES)
def test_absolute_differences_and_their_gradient(forms, shared, shape, levels):
    student, teacher, weights = case(shape, levels)
    weights = [weight[:1] if shared else weight for weight in weights]
    for weight in weights[:-1]:
        weight[:, 0] = 0
    bands = listed(student - teacher, levels)
    pairs = [(weight[:, None], band) for weight, band in zip_equal(weights, bands)]
    wanted = sum((weight * band.abs()).sum((2, 3, 4)) for weight, band in pairs)
    gradient = back([weight * band.sign() for weight, band in pairs], shape)
    level = Level(teacher, 1.0, [1.0] * levels, weights)
    for _ in forms():
        total, out = distance._planes(student, level, True)
        torch.testing.assert_close(total, wanted)
        torch.testing.assert_close(out, gradient)
        total, out = distance._planes(student, level, False)
        torch.testing.assert_close(total, wanted)
        assert out is None


def test_autocast_rounds_in_neither_form(forms):
    """It would round the convolution that is the transform of a GPU."""
    x = torch.randn(2, 3, 13, 21, generator=torch.Generator().manual_seed(0))
    wanted = dwt2d(x.double(), 2)
    for _ in forms():
        with torch.autocast('cpu', torch.bfloat16):
            bands = dwt2d(x, 2)
            torch.testing.assert_close(idwt2d(bands), x)
            value = WaveletLoss(3, min_positions=0)([x], [x.flip(0)])
        torch.testing.assert_close(bands.low, wanted.low.float())
        torch.testing.assert_close(bands.high[0].diagonal, wanted.high[0].diagonal.float())
        torch.testing.assert_close(value, WaveletLoss(3, min_positions=0)([x], [x.flip(0)]))


def test_the_convolution_has_the_order_of_the_transform_in_place():
    """It leaves a coefficient where the transform in place leaves it: weights of the positions go there too."""
    x = torch.arange(64.0).view(1, 1, 8, 8)
    bands = blocks.Blocks(x.shape, 3, x).analyse(x)[0].view(8, 8)
    whole = dwt2d(x, 3)
    for level, detail in enumerate(whole.high):
        for band, values in ((1, detail.vertical), (2, detail.horizontal), (3, detail.diagonal)):
            torch.testing.assert_close(bands[blocks.places(level, band)], values[0, 0])
    torch.testing.assert_close(bands[0, 0], whole.low[0, 0, 0, 0])
