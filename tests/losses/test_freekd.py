"""FreeKDLoss against the formulas, written with loops and with pytorch_wavelets or PyWavelets."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_wavelets import DWTForward
from torch import nn

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, WaveletDetail, dwt2d
from freekd_mm.losses import FreeKDLoss, WaveletLoss
from freekd_mm.losses.freekd import loss as freekd_loss
from freekd_mm.losses.freekd.bands import NORMALIZATIONS
from freekd_mm.prompts import PromptFile, save_prompt
from freekd_mm.registry import MODELS

CHANNELS = 5
SIZES = [(13, 9), (8, 8), (3, 5), (1, 1)]


def features(seed, sizes=SIZES, batch=2, channels=CHANNELS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, *size, generator=generator, dtype=dtype) for size in sizes]


def prompt_path(folder, num_tokens=2, levels=3, grouping='level', count=4, channels=CHANNELS, wavelet='haar'):
    groups = 1 + levels * (3 if grouping == 'band' else 1)
    generator = torch.Generator().manual_seed(7)
    tokens = {i: torch.randn(groups, num_tokens, channels, generator=generator) for i in range(count)}
    file = PromptFile({'neck': tokens}, levels=levels, num_tokens=num_tokens, grouping=grouping, wavelet=wavelet)
    return str(save_prompt(file, folder / 'prompt.pth')), tokens


def released_formula(students, teachers, tokens, num_tokens):
    """FreeKD's released loss: T masks a wavelet level, made from the sum of its orientations; no low band."""
    torch.set_default_dtype(students[0].dtype)  # the dtype in which pytorch_wavelets computes its filters
    transform = DWTForward(J=3, mode='zero', wave='haar')
    torch.set_default_dtype(torch.float32)
    total = 0.0
    for level, (student, teacher) in enumerate(zip_equal(students, teachers)):
        for j, (own, other) in enumerate(zip_equal(transform(student)[1], transform(teacher)[1])):
            batch, channels, _, height, width = other.shape
            logits = tokens[level][j + 1].to(other.dtype) @ other.sum(2).reshape(batch, channels, -1)
            masks = logits.sigmoid().reshape(batch, num_tokens, 1, 1, height, width)
            total = total + F.l1_loss(masks * own[:, None], masks * other[:, None])
    return total


@pytest.mark.parametrize('num_tokens', [1, 2, 3, 6])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_code_mode_is_the_released_formula_in_value_and_gradient(tmp_path, num_tokens, dtype):
    path, tokens = prompt_path(tmp_path, num_tokens)
    students = [level.requires_grad_() for level in features(0, dtype=dtype)]
    teachers = features(1, dtype=dtype)
    loss = FreeKDLoss(CHANNELS, num_tokens, mode='code', prompt=path, loss_weight=3.0)
    value = loss(students, teachers)
    wanted = 3 * released_formula(students, teachers, tokens, num_tokens)
    rtol = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(value, wanted, rtol=rtol, atol=0)
    for own, other in zip_equal(torch.autograd.grad(value, students), torch.autograd.grad(wanted, students)):
        torch.testing.assert_close(own, other, rtol=rtol, atol=rtol * other.abs().max().item())


def naive_paper(students, teachers, tokens, num_tokens, normalize, distance):
    """Loops over levels, images, channels and bands with PyWavelets; no relation."""

    def bands_of(plane):
        low, *coarse_first = pywt.wavedec2(plane, 'haar', mode='zero', level=3)
        return [low] + [band for detail in reversed(coarse_first) for band in detail]

    values = []
    for level, (student, teacher) in enumerate(zip_equal(students, teachers)):
        images = []
        for own, other in zip_equal(student.numpy(), teacher.numpy()):
            a = [np.stack(band) for band in zip_equal(*map(bands_of, other))]
            b = [np.stack(band) for band in zip_equal(*map(bands_of, own))]
            parts = []
            for k in range(10):
                group = 0 if k == 0 else 1 + (k - 1) // 3
                source = a[0] if k == 0 else sum(a[3 * group - 2 : 3 * group + 1])
                masks = 1 / (1 + np.exp(-np.einsum('tc,chw->thw', tokens[level][group].numpy(), source)))
                x, y = a[k], b[k]
                if normalize in ('teacher', 'channel', 'band'):
                    means = [v.mean((1, 2), keepdims=True) if k == 0 else 0 for v in (x, y)]
                    axes = (1, 2) if normalize == 'channel' else (0, 1, 2)
                    deviations = [
                        np.sqrt(((v - m) ** 2).mean(axes, keepdims=True)) for v, m in zip_equal((x, y), means)
                    ]
                    constant = deviations[0] < 1e-6
                    if normalize == 'teacher':
                        x, y = (np.where(constant, 0, v / np.where(constant, 1, deviations[0])) for v in (x, y))
                    else:
                        wide = [np.sqrt(deviation**2 + (0.01 * deviations[0]) ** 2) for deviation in deviations]
                        x = np.where(constant, 0, (x - means[0]) / np.where(constant, 1, wide[0]))
                        y = np.where(constant, 0, (y - means[1]) / np.where(constant, 1, wide[1]))
                total = 0.0
                for mask in masks:
                    gap = mask * x - mask * y
                    total += (np.abs(gap) if distance == 'l1' else gap**2).mean()
                parts.append(total * (2 if distance == 'l1' else 4) / num_tokens)
            images.append(parts[0] + np.mean(parts[1:]))
        values.append(np.mean(images))
    return np.mean(values)


@pytest.mark.parametrize('normalize', ['none', 'teacher', 'channel', 'band'])
@pytest.mark.parametrize('distance', ['l1', 'l2'])
def test_paper_mode_without_relation_equals_loops_over_every_band(tmp_path, normalize, distance):
    path, tokens = prompt_path(tmp_path, 3)
    students, teachers = features(2, dtype=torch.float64), features(3, dtype=torch.float64)
    loss = FreeKDLoss(CHANNELS, 3, relation=None, normalize=normalize, distance=distance, prompt=path, mode='paper')
    wanted = naive_paper(students, teachers, tokens, 3, normalize, distance)
    assert loss(students, teachers).item() == pytest.approx(wanted, rel=1e-6)


def test_wavelet_loss_is_one_minus_the_correlation_of_the_high_bands():
    """Of standardised values the mean of (b - a)^2 is 2 - 2 ab, but for the floor of the deviations."""
    students, teachers = features(2, [(8, 16), (4, 4)]), features(3, [(8, 16), (4, 4)])
    total = 0.0
    for student, teacher in zip_equal(students, teachers):
        for detail, other in zip_equal(dwt2d(student, 2).high, dwt2d(teacher, 2).high):
            for b, a in zip_equal(detail, other):
                product = (a * b).mean((0, 2, 3)) / (a.square().mean((0, 2, 3)) * b.square().mean((0, 2, 3))).sqrt()
                total += (2 - 2 * product.mean()) / (2 * 6)
    torch.testing.assert_close(WaveletLoss(CHANNELS, levels=2)(students, teachers), 2 * total, rtol=1e-3, atol=0)


@pytest.mark.parametrize('distance', ['l1', 'l2'])
def test_masks_of_mean_one_move_the_weight_and_do_not_add_any(tmp_path, distance):
    path, tokens = prompt_path(tmp_path, 3, count=1)
    students, teachers = features(2, [(8, 8)]), features(3, [(8, 8)])
    options = dict(num_tokens=3, relation=None, normalize='none', distance=distance, low_weight=0.0, mode='paper')
    value = FreeKDLoss(CHANNELS, prompt=path, mask_scale='mean', **options)(students, teachers)
    wanted = 0.0
    own, other = dwt2d(students[0], 3), dwt2d(teachers[0], 3)
    for j in range(3):
        mask = torch.einsum('tc,nchw->nthw', tokens[0][j + 1], sum(other.high[j])).sigmoid()
        weight = mask.pow(1 if distance == 'l1' else 2).sum(1, keepdim=True)
        weight = weight / weight.mean((2, 3), keepdim=True)
        for b, a in zip_equal(own.high[j], other.high[j]):
            gap = (b - a).abs() if distance == 'l1' else (b - a).square()
            wanted = wanted + (weight * gap).mean() / 9
    torch.testing.assert_close(value, wanted)


def test_batch_statistics_are_those_of_all_images():
    students, teachers = features(2, [(8, 8)]), features(3, [(8, 8)])
    loss = FreeKDLoss(CHANNELS, relation=None, normalize='batch', mode='paper')
    low, high = (dwt2d(side[0], 3) for side in (students, teachers))
    total = 0.0
    pairs = [(low.low, high.low, 1.0)] + [
        (own, other, 1 / 9) for d, e in zip_equal(low.high, high.high) for own, other in zip_equal(d, e)
    ]
    for index, (own, other, factor) in enumerate(pairs):
        means = [x.mean((0, 2, 3), keepdim=True) if index == 0 else 0 for x in (own, other)]
        scales = [(x - m).square().mean((0, 2, 3), keepdim=True) for x, m in zip_equal((own, other), means)]
        a = (other - means[1]) / (1.0001 * scales[1]).sqrt()
        b = (own - means[0]) / (scales[0] + 1e-4 * scales[1]).sqrt()
        total += factor * (a - b).abs().mean()
    torch.testing.assert_close(loss(students, teachers), total)


def test_bands_have_their_own_tokens_with_grouping_band(tmp_path):
    path, tokens = prompt_path(tmp_path, 2, grouping='band', count=1)
    students, teachers = features(0, SIZES[:1]), features(1, SIZES[:1])
    loss = FreeKDLoss(
        CHANNELS, normalize='none', relation=None, low_weight=0.0, prompt=path, grouping='band', mode='paper'
    )
    total = 0.0
    for j, (own, other) in enumerate(zip_equal(dwt2d(students[0], 3).high, dwt2d(teachers[0], 3).high)):
        for o in range(3):
            masks = torch.einsum('tc,nchw->nthw', tokens[0][1 + 3 * j + o], other[o]).sigmoid().sum(1, keepdim=True)
            total += (masks * (own[o] - other[o]).abs()).mean() / 9
    torch.testing.assert_close(loss(students, teachers), total)


def test_the_prompt_changes_what_is_compared_and_not_having_one_is_logged(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(freekd_loss, 'print_log', lambda message, *_: logged.append(message))
    plain = FreeKDLoss(CHANNELS, mode='paper')
    masked = FreeKDLoss(CHANNELS, prompt=prompt_path(tmp_path)[0], mode='paper')
    values = [loss(features(0), features(1)) for loss in (plain, plain, masked)]
    assert len(logged) == 1
    assert 'plain frequency distillation' in logged[0]
    assert abs(values[0] - values[2]) > 1e-3


def test_tokens_of_zero_are_as_no_prompt(tmp_path):
    file = PromptFile({'neck': {i: torch.zeros(4, 6, CHANNELS) for i in range(4)}}, num_tokens=6)
    path = save_prompt(file, tmp_path / 'zero.pth')
    for distance in ('l1', 'l2'):
        masked = FreeKDLoss(CHANNELS, 6, relation=None, distance=distance, prompt=str(path), mode='paper')
        plain = FreeKDLoss(CHANNELS, relation=None, distance=distance, mode='paper')
        torch.testing.assert_close(masked(features(0), features(1)), plain(features(0), features(1)))


@pytest.mark.parametrize('options', [{}, {'normalize': 'teacher'}, {'relation': 'free'}])
def test_the_default_is_of_the_order_of_one_for_every_feature_scale(options):
    sizes = [(24, 32), (12, 16), (6, 8)]
    students, teachers = features(0, sizes), features(1, sizes)
    loss = FreeKDLoss(CHANNELS, **options, mode='paper')
    value = loss(students, teachers)
    assert 0.5 < value < 5
    for scale in (1e-3, 1e4):
        scaled = loss([scale * level for level in students], [scale * level for level in teachers])
        torch.testing.assert_close(scaled, value, rtol=1e-3, atol=0)


def test_half_batches_give_the_same_loss_and_gradient_as_the_whole_batch(tmp_path):
    """What two processes with one image each compute, averaged as DDP does, is what one process with both does."""
    path, _ = prompt_path(tmp_path)
    students, teachers = [level.requires_grad_() for level in features(0)], features(1)
    loss = FreeKDLoss(CHANNELS, prompt=path, mode='paper')
    whole = loss(students, teachers)
    halves = sum(loss([s[i : i + 1] for s in students], [t[i : i + 1] for t in teachers]) / 2 for i in range(2))
    torch.testing.assert_close(whole, halves)
    for own, other in zip_equal(torch.autograd.grad(whole, students), torch.autograd.grad(halves, students)):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize('wavelet', ['haar', 'db2'])
@pytest.mark.parametrize('normalize', NORMALIZATIONS)
@pytest.mark.parametrize('distance', ['l1', 'l2'])
def test_gradients_agree_with_finite_differences(tmp_path, wavelet, normalize, distance):
    path, _ = prompt_path(tmp_path, 3, levels=2, count=1, channels=2, wavelet=wavelet)
    loss = FreeKDLoss(
        2, 3, 2, wavelet, relation=None, normalize=normalize, distance=distance, prompt=path, mode='paper'
    )
    student, teacher = (features(seed, [(5, 6)], channels=2, dtype=torch.float64)[0] for seed in (4, 5))
    assert torch.autograd.gradcheck(lambda x: loss([x], [teacher]), (student.requires_grad_(),), eps=1e-7, atol=1e-5)


def test_a_second_backward_and_a_scaled_gradient_are_right():
    student, teacher = features(0, [(6, 7)])[0].requires_grad_(), features(1, [(6, 7)])[0]
    value = FreeKDLoss(CHANNELS, mode='paper')(student, teacher)
    first = torch.autograd.grad(value, student, retain_graph=True)[0]
    second = torch.autograd.grad(value, student, torch.tensor(2.0))[0]
    torch.testing.assert_close(second, 2 * first)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    levels=st.integers(1, 4),
    normalize=st.sampled_from(NORMALIZATIONS),
    distance=st.sampled_from(['l1', 'l2']),
    relation=st.sampled_from([None, 'free', 'mlp']),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    constant=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_loss_is_a_finite_distance(
    batch, channels, height, width, levels, normalize, distance, relation, scale, constant, seed
):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(height, width), ((height + 1) // 2, (width + 1) // 2)]
    make = lambda size: scale * torch.randn(batch, channels, *size, generator=generator)  # noqa: E731
    students = [make(size).requires_grad_() for size in sizes]
    teachers = [torch.full_like(make(size), scale) if constant else make(size) for size in sizes]
    copies = [level.detach().clone() for level in (*students, *teachers)]
    loss = FreeKDLoss(channels, levels=levels, normalize=normalize, distance=distance, relation=relation, mode='paper')
    value = loss(students, teachers)
    gradients = torch.autograd.grad(value, students, allow_unused=True)
    assert value.dtype == torch.float32
    assert value.ndim == 0
    assert torch.isfinite(value)
    assert value >= 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)
    assert all(torch.equal(old, new) for old, new in zip_equal(copies, (*students, *teachers)))
    order = torch.randperm(batch, generator=generator)
    shuffled = loss([s[order] for s in students], [t[order] for t in teachers])
    torch.testing.assert_close(shuffled, value, rtol=1e-4, atol=1e-6 * (1 + value.item()))
    equal = loss([t.clone() for t in teachers], teachers)
    assert equal <= (1e-5 if normalize in ('channel', 'band', 'batch', 'feature') else 0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('normalize', ['none', 'channel'])
def test_half_precision_is_computed_in_float32(tmp_path, dtype, normalize):
    path, _ = prompt_path(tmp_path)
    loss = FreeKDLoss(CHANNELS, normalize=normalize, prompt=path, mode='paper')
    students = [level.to(dtype).requires_grad_() for level in features(0)]
    teachers = [level.to(dtype) for level in features(1)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = loss(students, teachers)
    wide = [level.detach().float().requires_grad_() for level in students]
    wanted = loss(wide, [level.float() for level in teachers])
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, wanted)
    for own, other in zip_equal(torch.autograd.grad(value, students), torch.autograd.grad(wanted, wide)):
        assert own.dtype == dtype
        torch.testing.assert_close(own.float(), other, rtol=1e-2, atol=1e-4)


def test_channels_last_and_non_contiguous_features_give_the_same(tmp_path):
    path, _ = prompt_path(tmp_path, count=2)
    loss = FreeKDLoss(CHANNELS, prompt=path, mode='paper')
    students, teachers = features(0, [(12, 10), (6, 5)]), features(1, [(12, 10), (6, 5)])
    wanted = loss(students, teachers)
    last = [[x.to(memory_format=torch.channels_last) for x in side] for side in (students, teachers)]
    strided = [[F.pad(x, (1, 2, 3, 4))[:, :, 3:-4, 1:-2] for x in side] for side in (students, teachers)]
    for own, other in (last, strided):
        own = [level.requires_grad_() for level in own]
        value = loss(own, other)
        torch.testing.assert_close(value, wanted)
        assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(value, own))


def test_an_empty_batch_gives_zero_and_a_gradient():
    loss = FreeKDLoss(CHANNELS, mode='paper')
    students = [torch.zeros(0, CHANNELS, 6, 6, requires_grad=True) for _ in range(2)]
    value = loss(students, [level.detach() for level in students])
    assert value == 0
    value.backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_one_tensor_is_one_level_and_the_terms_add_up():
    student, teacher = features(0, [(9, 8)])[0], features(1, [(9, 8)])[0]
    loss = FreeKDLoss(CHANNELS, low_weight=0.5, high_weight=(1.0, 2.0, 0.5), level_weights=(3.0,), mode='paper')
    value = loss(student, teacher)
    assert sorted(loss.terms) == ['level0/high', 'level0/low']
    torch.testing.assert_close(sum(loss.terms.values()), value.detach())
    assert not any(term.requires_grad for term in loss.terms.values())


def test_weights_of_levels_and_bands_scale_their_parts():
    students, teachers = features(0, SIZES[:2]), features(1, SIZES[:2])
    one = FreeKDLoss(CHANNELS, relation=None, mode='paper')
    one(students, teachers)
    other = FreeKDLoss(
        CHANNELS, relation=None, low_weight=0.5, high_weight=(2, 2, 2), level_weights=(1, 3), mode='paper'
    )
    other(students, teachers)
    torch.testing.assert_close(other.terms['level0/low'], 0.5 * one.terms['level0/low'])
    torch.testing.assert_close(other.terms['level1/high'], 6 * one.terms['level1/high'])


class CornerMasks(nn.Module):
    """A mask generator of somebody else: looks at the upper left corner only."""

    def forward(self, levels):
        return tuple(self.corner(level) for level in levels)

    @staticmethod
    def corner(level):
        def mask(band):
            out = band.new_zeros(len(band), 1, *band.shape[2:])
            out[..., 0, 0] = 0.5
            return out

        bands = dwt2d(level, 3)
        high = tuple(WaveletDetail(*map(mask, detail)) for detail in bands.high)
        return WaveletBands(mask(bands.low), high, bands.shape)


def test_another_mask_generator_can_be_tried_by_config():
    MODELS.register_module(module=CornerMasks, force=True)
    loss = FreeKDLoss(
        CHANNELS, relation=None, normalize='none', prompt=dict(type='freekd_mm.CornerMasks'), mode='paper'
    )
    student, teacher = features(0, [(16, 16)])[0].requires_grad_(), features(1, [(16, 16)])[0]
    gradient = torch.autograd.grad(loss(student, teacher), student)[0]
    assert gradient[:, :, :8, :8].abs().sum() > 0
    assert gradient[:, :, 8:].abs().sum() == 0


def test_is_built_from_a_config_and_copies(tmp_path):
    cfg = dict(type='freekd_mm.FreeKDLoss', channels=CHANNELS, mode='paper', prompt=prompt_path(tmp_path)[0])
    loss = MODELS.build(cfg)
    assert isinstance(loss, FreeKDLoss)
    twin = copy.deepcopy(loss)
    twin.load_state_dict(loss.state_dict())
    torch.testing.assert_close(twin(features(0), features(1)), loss(features(0), features(1)))
    trained = [name for name, parameter in loss.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(name.startswith('gate.') for name in trained), 'the prompt is frozen'


@pytest.mark.parametrize('options', [{}, dict(mode='code'), dict(mode='paper', relation='free', normalize='teacher')])
def test_compiles_as_one_graph(tmp_path, options):
    loss = FreeKDLoss(CHANNELS, prompt=prompt_path(tmp_path, count=2)[0], **options)
    students, teachers = [level.requires_grad_() for level in features(0, SIZES[:2])], features(1, SIZES[:2])
    wanted = loss(students, teachers)
    value = torch.compile(loss, backend='aot_eager', fullgraph=True)(students, teachers)
    torch.testing.assert_close(value, wanted)
    for own, other in zip_equal(torch.autograd.grad(value, students), torch.autograd.grad(wanted, students)):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (
            dict(mode='papr'),
            ValueError,
            "mode should be one of 'paper', 'code', but got 'papr'.* mean 'paper'",
        ),
        (dict(normalize='chanel'), ValueError, "normalize should be one of .*Did you mean 'channel'"),
        (dict(distance='l3'), ValueError, 'distance should be one of'),
        (dict(loss_weight='1'), TypeError, 'loss_weight should be a number'),
        (dict(mask_scale='means'), ValueError, "mask_scale should be one of .* mean 'mean'"),
        (dict(relation='mpl'), ValueError, "relation should be one of 'mlp', 'free'.*Did you mean 'mlp'"),
        (dict(wavelet='har'), ValueError, "wavelet should be one of .* mean 'haar'"),
        (dict(levels=0), ValueError, 'levels should be greater than 0'),
        (dict(num_tokens=1.5), TypeError, 'num_tokens should be an integer'),
        (dict(channels='256'), TypeError, 'channels should be an integer'),
        (dict(low_weight=-1.0), ValueError, 'low_weight should be at least 0'),
        (dict(high_weight=(1.0, 2.0)), ValueError, 'high_weight should be one number or one for each of the 3'),
        (dict(high_weight='1'), TypeError, 'high_weight should be a number'),
        (dict(mode='code', low_weight=1.0), ValueError, 'low_weight should be left out with mode=.code'),
        (dict(mode='code', relation='mlp'), ValueError, 'relation should be left out'),
        (dict(mode='code', normalize='channel', distance='l2'), ValueError, 'normalize, distance should be left out'),
        (dict(grouping='bands'), ValueError, "grouping should be one of .* mean 'band'"),
        (dict(prompt='no/such/file.pth'), FileNotFoundError, 'no/such/file.pth'),
    ],
)
def test_wrong_options_name_what_is_available(options, error, message):
    with pytest.raises(error, match=message):
        FreeKDLoss(**{'channels': CHANNELS, **options})


def test_features_that_do_not_fit_are_named():
    students, teachers = features(0), features(1)
    with pytest.raises(ValueError, match=r'level 0 of the teacher should be \(N, 7, H, W\).*but got \(2, 5, 13, 9\)'):
        FreeKDLoss(7, mode='paper')(students, teachers)
    with pytest.raises(ValueError, match='channels should be one number or one for each of the 4 levels'):
        FreeKDLoss((5, 5), mode='paper')(students, teachers)
    with pytest.raises(ValueError, match="level 1 of the student should have the teacher's shape"):
        FreeKDLoss(CHANNELS, mode='paper')([students[0], students[2], *students[2:]], teachers)
    with pytest.raises(ValueError, match='should have as many levels'):
        FreeKDLoss(CHANNELS, mode='paper')(students[:3], teachers)
    with pytest.raises(ValueError, match='level_weights should be one number or one for each of the 4'):
        FreeKDLoss(CHANNELS, level_weights=(1.0, 2.0), mode='paper')(students, teachers)


def test_levels_of_other_channels_work():
    teachers = [torch.randn(2, c, s, s) for c, s in ((4, 16), (6, 8), (8, 8))]
    students = [torch.randn_like(level).requires_grad_() for level in teachers]
    loss = FreeKDLoss((4, 6, 8), mode='paper')
    loss(students, teachers).backward()
    assert all(math.isfinite(level.grad.sum().item()) for level in students)
    assert all(parameter.grad is not None for parameter in loss.parameters())
