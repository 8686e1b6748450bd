"""Properties that hold for any features: of the transforms, the masks, the connectors and the losses."""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from mmengine.registry import MODELS
from torch import Tensor

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import dct2d, dwt1d, dwt2d, idct2d, idwt1d, idwt2d
from freekd_mm.prompts import FrequencyPrompt, mask_similarity, poi_masks

# The same examples on every machine; no limit of time, which is not what is tested.
#: ptwt, which others than Haar need, has no release for each Python.
WAVELETS = ['haar', *(['db2', 'sym3'] if importlib.util.find_spec('ptwt') else [])]
FIXED = settings(max_examples=30, deadline=None, derandomize=True)
FEW = settings(FIXED, max_examples=15)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
#: Squares of the largest still have a place in float32; in float16 the values end at 65504.
SCALES = (0.0, 1e-30, 1e-6, 1.0, 1e3, 1e15)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@st.composite
def features(draw, channels=None, dtypes=DTYPES, scales=SCALES, smallest=1, largest=9):
    """Draws (N, C, H, W): batches of one, maps of one pixel, constants, huge and tiny values, holes."""
    shape = (
        draw(st.integers(1, 3)),
        channels or draw(st.integers(1, 4)),
        draw(st.integers(smallest, largest)),
        draw(st.integers(smallest, largest)),
    )
    dtype, scale = draw(st.sampled_from(dtypes)), draw(st.sampled_from(scales))
    if dtype == torch.float16:
        # Below are numbers of few digits; and a normalised loss has gradients as large as its features are small.
        scale = max(scale, 1e-2) if scale else scale
    x = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**32))), dtype=torch.float64)
    kind = draw(st.sampled_from(['noise', 'constant', 'channel of zeros', 'one peak']))
    if kind == 'constant':
        x = x[..., :1, :1].expand(shape)
    elif kind == 'channel of zeros':
        x = x * (torch.arange(shape[1]) > 0)[:, None, None]
    elif kind == 'one peak':
        x = torch.zeros(shape, dtype=torch.float64)
        x[..., 0, 0] = 1
    limit = 0.1 * torch.finfo(dtype).max
    return (x * scale).clamp(-limit, limit).to(dtype)


def near(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors agree to the precision of their dtype, relative to the largest value."""
    scale = max(float(second.detach().double().abs().max()), 1e-30) if second.numel() else 1.0
    return bool(((first.double() - second.double()).abs() <= TOLERANCE[first.dtype] * scale).all())


def flat(bands: Any) -> list[Tensor]:
    """Returns all tensors in nested tuples."""
    if isinstance(bands, Tensor):
        return [bands]
    return [tensor for item in bands for tensor in flat(item)] if isinstance(bands, tuple) else []


class TestTransforms:
    @FIXED
    @given(features(), st.integers(1, 4), st.sampled_from(WAVELETS))
    def test_wavelet_of_maps(self, x, levels, wavelet):
        before = x.clone()
        bands = dwt2d(x, levels, wavelet)
        assert near(idwt2d(bands), x)
        for band in flat(bands):
            assert (band.dtype, band.device) == (x.dtype, x.device)
            assert band.shape[:2] == x.shape[:2]
            assert torch.isfinite(band).all()
        assert torch.equal(x, before)

    @FIXED
    @given(features(dtypes=DTYPES[:2], scales=(1e-6, 1.0, 1e3)), st.integers(1, 3))
    def test_wavelet_is_linear_and_keeps_images_apart(self, x, levels):
        once, reverse = flat(dwt2d(x, levels)), flat(dwt2d(x.flip(0) * -3, levels))
        assert all(near(other, band.flip(0) * -3) for band, other in zip_equal(once, reverse))

    @FIXED
    @given(features(dtypes=DTYPES[:1], scales=(1.0,), largest=4), st.integers(1, 2))
    def test_haar_keeps_energy(self, x, levels):
        """Odd sizes are padded with zeros, which have none."""
        energy = sum(band.square().sum() for band in flat(dwt2d(x, levels)))
        assert torch.isclose(energy, x.square().sum(), rtol=1e-9)

    @FIXED
    @given(features(), st.integers(1, 3), st.sampled_from([-1, -2, 1]))
    def test_wavelet_of_rows(self, x, levels, dim):
        before = x.clone()
        bands = dwt1d(x, levels, dim=dim)
        assert near(idwt1d(bands), x)
        assert all(band.dtype == x.dtype and torch.isfinite(band).all() for band in flat(bands))
        assert torch.equal(x, before)

    @FIXED
    @given(features())
    def test_cosine(self, x):
        before = x.clone()
        spectrum = dct2d(x)
        assert near(idct2d(spectrum), x)
        assert (spectrum.dtype, spectrum.shape) == (x.dtype, x.shape)
        assert near(dct2d(x.flip(0)), spectrum.flip(0))
        if x.dtype == torch.float64:
            assert torch.isclose(spectrum.square().sum(), x.square().sum(), rtol=1e-9)
        assert torch.equal(x, before)


class TestMasks:
    @FIXED
    @given(
        features(channels=3),
        st.integers(1, 3),
        st.integers(1, 3),
        st.sampled_from(['level', 'band']),
        st.sampled_from([0.0, 0.1, 10.0]),
    )
    def test_masks(self, x, levels, num_tokens, grouping, scale):
        groups = 1 + levels * (3 if grouping == 'band' else 1)
        tokens = scale * torch.randn(groups, num_tokens, 3, generator=torch.Generator().manual_seed(levels))
        before = x.clone()
        masks = poi_masks(x, tokens, levels, grouping)
        bands = dwt2d(x, levels)
        for mask, band in zip_equal(flat(masks), flat(bands)):
            assert mask.shape == (x.shape[0], num_tokens, *band.shape[2:])
            assert bool(((mask >= 0) & (mask <= 1)).all())
        for mask, other in zip_equal(flat(masks), flat(poi_masks(x.flip(0), tokens, levels, grouping))):
            assert torch.allclose(mask.flip(0), other, rtol=0, atol=1e-5)
        assert torch.equal(x, before)

    @FIXED
    @given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from(['jaccard', 'dice']))
    def test_similarity(self, batch, num_tokens, size, kind):
        masks = torch.rand(batch, num_tokens, size, size, generator=torch.Generator().manual_seed(size))
        value = mask_similarity(masks, kind)
        assert 0 <= value <= 1 + 1e-6
        assert torch.isclose(value, mask_similarity(masks.flip(1), kind))
        assert torch.isclose(value, mask_similarity(masks.flip(0), kind))
        same = mask_similarity(masks[:, :1].expand(-1, num_tokens, -1, -1), kind)
        assert same >= value - 1e-6

    @FIXED
    @given(features(channels=3, scales=(0.0, 1e-6, 1.0, 1e3)), st.integers(1, 3), st.integers(1, 3))
    def test_a_new_prompt_changes_nothing(self, x, levels, num_tokens):
        before = x.clone()
        with torch.no_grad():
            given, *_ = FrequencyPrompt(3, num_tokens=num_tokens, levels=levels)(x)
        assert (given.dtype, given.shape) == (x.dtype, x.shape)
        assert near(given, x)
        assert torch.equal(x, before)


class TestConnectors:
    @FEW
    @given(features(channels=4, dtypes=DTYPES[:2], scales=(0.0, 1e-6, 1.0, 1e3), smallest=2), st.booleans())
    def test_fam(self, x, review):
        kind = 'freekd_mm.FAMReviewConnector' if review else 'freekd_mm.FAMConnector'
        torch.manual_seed(0)
        connector = MODELS.build(dict(type=kind, in_channels=4, out_channels=3, num_levels=2, rank=2)).to(x.dtype)
        levels = (x, x[..., ::2, ::2].contiguous())
        before = [level.clone() for level in levels]
        outputs = connector(levels)
        for level, output in zip_equal(levels, outputs):
            assert output.shape == (level.shape[0], 3, *level.shape[2:])
            assert output.dtype == x.dtype
            assert torch.isfinite(output).all()
        flipped = connector(tuple(level.flip(0) for level in levels))
        assert all(near(other.flip(0), output) for output, other in zip_equal(outputs, flipped))
        assert all(torch.equal(level, old) for level, old in zip_equal(levels, before))


def freekd(mode='paper', **options):
    return dict(type='freekd_mm.FreeKDLoss', channels=4, levels=2, mode=mode, **options)


LOSSES = {
    'mse': dict(type='freekd_mm.FeatureMSELoss'),
    'dct': dict(type='freekd_mm.DCTAttentionLoss'),
    'dct fft': dict(type='freekd_mm.DCTAttentionLoss', transform='fft_real'),
    'dct fft abs': dict(type='freekd_mm.DCTAttentionLoss', transform='fft_abs'),
    'freekd code': freekd('code'),
    'wavelet': dict(type='freekd_mm.WaveletLoss', channels=4, levels=2, min_positions=0),
    'freekd plus': dict(type='freekd_mm.FreeKDPlusLoss', channels=4, levels=2, min_positions=0),
    **{
        f'freekd {relation} {positions}': freekd(relation=relation, min_positions=positions)
        for relation, positions in itertools.product((None, 'bounded', 'printed'), (0, 16))
    },
    **{
        f'figkd {target} {distance} {order}': dict(
            type='freekd_mm.FiGKDLoss', target=target, distance=distance, order=order
        )
        for target, distance, order in itertools.product(('detail', 'both'), ('mse', 'kl'), ('index', 'teacher'))
    },
    'kl': dict(type='freekd_mm.LogitKLLoss', temperature=3.0),
    'kl sigmoid': dict(type='freekd_mm.LogitKLLoss', use_sigmoid=True, foreground=True),
    'figkd foreground': dict(type='freekd_mm.FiGKDLoss', foreground=True, use_sigmoid=True),
}
#: Divided by a deviation of the batch, an image's part depends on the others.
OF_THE_BATCH = ('wavelet', 'freekd plus')


def loss_of(name):
    torch.manual_seed(0)
    return MODELS.build(dict(LOSSES[name]))


@st.composite
def pairs(draw, **options):
    """Draws two levels of a student and of a teacher."""
    teacher = draw(features(channels=4, **options))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    noise = torch.randn(teacher.shape, generator=generator, dtype=torch.float64)
    far = draw(st.sampled_from([0, 1, 100])) * teacher.abs().max().double().clamp(max=1e3) * noise
    limit = 0.1 * torch.finfo(teacher.dtype).max
    student = (teacher + far).clamp(-limit, limit).to(teacher.dtype)
    return (student, student[..., :1, :1]), (teacher, teacher[..., :1, :1])


@pytest.mark.parametrize('name', LOSSES)
class TestLosses:
    def test_value_and_gradient(self, name):
        """Finite, not negative, of the precision asked for; the teacher gets nothing, and nobody is changed."""
        loss = loss_of(name)

        @FIXED
        @given(pairs())
        def check(pair):
            students, teachers = pair
            loss.to(torch.float64 if students[0].dtype == torch.float64 else torch.float32)
            students = tuple(level.clone().requires_grad_() for level in students)
            teachers = tuple(level.clone().requires_grad_() for level in teachers)
            before = [level.detach().clone() for level in (*students, *teachers)]
            value = loss(students, teachers)
            assert value.shape == ()
            assert value.dtype == (torch.float64 if students[0].dtype == torch.float64 else torch.float32)
            assert value.device == students[0].device
            assert torch.isfinite(value), students
            assert value >= -1e-5
            value.backward()
            for level in students:
                assert level.grad is None or (torch.isfinite(level.grad).all() and level.grad.dtype == level.dtype)
            assert all(level.grad is None for level in teachers)
            now = [level.detach() for level in (*students, *teachers)]
            assert all(torch.equal(old, new) for old, new in zip_equal(before, now))
            assert all(bool(torch.isfinite(term).all()) and not term.requires_grad for term in loss.terms.values())

        check()

    def test_zero_at_equality(self, name):
        loss = loss_of(name)

        @FEW
        @given(features(channels=4, dtypes=DTYPES[:2]))
        def check(x):
            loss.to(x.dtype)
            assert loss((x, x[..., :1, :1]), (x, x[..., :1, :1])).abs() < 1e-4

        check()

    def test_order_of_the_images(self, name):
        loss = loss_of(name)

        @FEW
        @given(pairs(dtypes=DTYPES[:1], scales=(1e-6, 1.0, 1e3)))
        def check(pair):
            loss.double()
            value = loss(*pair)
            other = loss(*(tuple(level.flip(0) for level in levels) for levels in pair))
            assert torch.isclose(value, other, rtol=1e-6, atol=1e-12)

        check()

    def test_mean_of_the_images(self, name):
        """One image at a time gives the same: the batch size and the number of processes do not matter."""
        if any(word in name for word in OF_THE_BATCH):
            pytest.skip('normalised over the batch')
        loss = loss_of(name)

        @FEW
        @given(pairs(dtypes=DTYPES[:1], scales=(1e-6, 1.0, 1e3)))
        def check(pair):
            loss.double()
            value = loss(*pair)
            count = pair[0][0].shape[0]
            alone = [loss(*(tuple(level[n : n + 1] for level in levels) for levels in pair)) for n in range(count)]
            assert torch.isclose(value, sum(alone) / count, rtol=1e-6, atol=1e-12)

        check()
