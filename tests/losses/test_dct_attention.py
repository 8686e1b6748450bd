"""DCTAttentionLoss against NumPy and SciPy, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freekd_mm.compat.versions import zip_equal
from freekd_mm.losses import DCTAttentionLoss
from freekd_mm.registry import MODELS

TRANSFORMS = ['dct', 'fft_real', 'fft_abs']


def naive_spectrum(features, transform, size):
    """The normalised spectrum of one image's features (C, H, W), cut to the lowest frequencies."""
    attention = np.zeros(features.shape[1:])
    for channel in features:
        attention += channel**2 / features.shape[0]
    by_max = transform == 'fft_abs'
    attention = (attention - attention.min()) / (attention.max() if by_max else np.ptp(attention))
    attention = attention - attention.mean()
    if transform == 'dct':
        spectrum = scipy.fft.dctn(attention, norm='ortho')[: size[0], : size[1]]
    else:
        spectrum = np.real(np.fft.fft(np.fft.fft(attention, axis=0), axis=1))
        spectrum = np.abs(spectrum) if by_max else spectrum
        # Frequencies -k // 2 ... (k - 1) // 2; NumPy's negative indices are the negative frequencies.
        spectrum = spectrum[np.ix_(*(np.arange(-(kept // 2), kept - kept // 2) for kept in size))]
    return (spectrum - spectrum.min()) / (spectrum.max() if by_max else np.ptp(spectrum))


def naive(students, teachers, transform):
    """The loss with loops over levels and images."""
    total = 0.0
    for student, teacher in zip_equal(students, teachers):
        size = np.minimum(student.shape[2:], teacher.shape[2:])
        spectra = [[naive_spectrum(image, transform, size) for image in level.numpy()] for level in (student, teacher)]
        total += np.mean([np.linalg.norm(s - t) for s, t in zip_equal(*spectra)])
    return total


def features(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_equals_the_formula(transform):
    shapes = [(2, 5, 8, 11), (2, 5, 4, 6), (2, 5, 1, 3)]
    students, teachers = features(*shapes), features(*shapes, seed=1)
    loss = DCTAttentionLoss(transform, loss_weight=2.0)
    assert loss(students, teachers).item() == pytest.approx(2 * naive(students, teachers, transform), rel=1e-9)
    assert set(loss.terms) == {'level0/dct', 'level1/dct', 'level2/dct'}


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize(
    ('student', 'teacher'),
    [((8, 12), (4, 6)), ((4, 6), (9, 13)), ((5, 9), (8, 4)), ((7, 3), (2, 3)), ((8, 8), (8, 5))],
)
def test_other_sizes_and_channels_share_the_low_block(transform, student, teacher):
    (s,), (t,) = features((3, 4, *student)), features((3, 7, *teacher), seed=1)
    assert DCTAttentionLoss(transform)(s, t).item() == pytest.approx(naive([s], [t], transform), rel=1e-9)


def test_value_and_gradient_are_those_of_the_released_formula():
    """Written from it: both normalisations by min and range, the real part of the FFT with its sign."""
    students, teachers = (features((2, 5, 8, 6), (2, 7, 4, 3), seed=seed) for seed in (0, 1))

    def spectrum(level):
        maps = (level**2).mean(1)
        maps = (maps - maps.amin((1, 2), True)) / (maps.amax((1, 2), True) - maps.amin((1, 2), True))
        real = torch.fft.fft2(maps - maps.mean((1, 2), True)).real
        return (real - real.amin((1, 2), True)) / (real.amax((1, 2), True) - real.amin((1, 2), True))

    def released(levels):
        apart = [((spectrum(s) - spectrum(t)) ** 2).sum((1, 2)).sqrt() for s, t in zip_equal(levels, teachers)]
        return sum(apart).mean()

    (ours, gradients), (theirs, expected) = (
        (value, torch.autograd.grad(value, inputs))
        for loss in (lambda levels: DCTAttentionLoss('fft_real')(levels, teachers), released)
        for inputs in [[level.clone().requires_grad_() for level in students]]
        for value in [loss(inputs)]
    )
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    for own, other in zip_equal(gradients, expected):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-12)


def test_a_smooth_map_hardly_depends_on_the_resolution():
    """The shared low block is the same picture: a cosine sampled twice as finely."""

    def cosine(size):
        rows = torch.cos(torch.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size)
        return (2 + rows[:, None] * rows).sqrt()[None, None]

    loss = DCTAttentionLoss()
    assert loss(cosine(8), cosine(16)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_scale_of_the_features_does_not_matter(transform):
    (s,), (t,) = features((2, 5, 6, 7)), features((2, 5, 6, 7), seed=1)
    loss = DCTAttentionLoss(transform)
    assert loss(s * 1e-3, t * 1e4).item() == pytest.approx(loss(s, t).item(), rel=1e-9)


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_constant_maps(transform):
    loss = DCTAttentionLoss(transform)
    student = torch.ones(2, 3, 4, 5, requires_grad=True)
    varied = torch.randn(2, 3, 4, 5)
    for teacher in (torch.zeros(2, 3, 4, 5), torch.full((2, 3, 4, 5), 7.0), varied):
        value = loss(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
    assert loss(student, torch.zeros(2, 3, 4, 5)).item() == 0
    assert loss(student, varied).item() > 0


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_rounding_does_not_make_a_constant_map_a_picture(transform):
    """Sums over many channels need not round alike at every pixel."""
    channels = torch.randn(1, 256, 1, 1)
    flat = channels.expand(1, 256, 13, 17) * (1 + 1e-7 * torch.randn(1, 1, 13, 17))
    assert DCTAttentionLoss(transform)(flat, torch.zeros(1, 256, 13, 17)).item() == 0


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_zero_at_equality_with_a_finite_gradient(transform):
    (teacher,) = features((2, 3, 6, 5))
    student = teacher.clone().requires_grad_()
    loss = DCTAttentionLoss(transform)(student, teacher)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('teacher_size', [(5, 4), (3, 6)])
def test_gradient(transform, teacher_size):
    (student,), (teacher,) = features((2, 3, 5, 4)), features((2, 3, *teacher_size), seed=1)
    assert torch.autograd.gradcheck(lambda s: DCTAttentionLoss(transform)(s, teacher), student.requires_grad_())


def test_teacher_gets_no_gradient():
    student, teacher = (torch.randn(1, 2, 4, 4, requires_grad=True) for _ in range(2))
    DCTAttentionLoss()(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(transform, dtype):
    (student,), (teacher,) = ([level.to(dtype) * 300] for level in features((2, 8, 6, 6), (2, 8, 6, 6)))
    loss = DCTAttentionLoss(transform)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(student.float(), teacher.float()).item(), rel=1e-6)


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('size', [(4, 4), (1, 1)])
@pytest.mark.parametrize('batch', [0, 1])
def test_small_batches(transform, size, batch):
    student = torch.randn(batch, 3, *size, requires_grad=True)
    loss = DCTAttentionLoss(transform)(student, torch.randn(batch, 3, 3, 3))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@settings(max_examples=40, deadline=None)
@given(
    student=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    teacher=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    transform=st.sampled_from(TRANSFORMS),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_properties(student, teacher, transform, scale, seed):
    (s,), (t,) = features((3, *student), dtype=torch.float32, seed=seed), features((3, *teacher), dtype=torch.float32)
    s = (s * scale).requires_grad_()
    before = s.detach().clone()
    loss = DCTAttentionLoss(transform)
    value = loss(s, t)
    (gradient,) = torch.autograd.grad(value, s)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert value.item() >= 0
    assert loss(s, s).item() == 0
    assert loss(s[[1, 2, 0]], t[[1, 2, 0]]).item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6)
    assert torch.equal(s, before)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'transform': 'dtc'},
            "transform should be one of 'dct', 'fft_real', 'fft_abs', but got 'dtc'. Did you mean 'dct'",
        ),
        ({'eps': 0}, 'eps should be greater than 0, but got 0'),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        DCTAttentionLoss(**options)


def test_wrong_features():
    with pytest.raises(ValueError, match=r'level 0 should be \(N, C, H, W\) with the same N, but got \(2, 3\) from'):
        DCTAttentionLoss()(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match='with the same N'):
        DCTAttentionLoss()(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))


def test_registered():
    assert MODELS.build({'type': 'freekd_mm.DCTAttentionLoss', 'transform': 'fft_real'}).any_shape
