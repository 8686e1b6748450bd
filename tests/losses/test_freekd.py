"""FreeKDLoss against the formulas, written with loops and with pytorch_wavelets or PyWavelets."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_checks import check_half_precision, check_memory_formats
from pytorch_wavelets import DWTForward
from torch import nn

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, WaveletDetail, dwt2d
from freekd_mm.losses import FreeKDLoss
from freekd_mm.prompts import PromptFile, save_prompt
from freekd_mm.registry import MODELS

CHANNELS = 5
SIZES = [(13, 9), (8, 8), (3, 5), (1, 1)]


def features(seed, sizes=SIZES, batch=2, channels=CHANNELS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, *size, generator=generator, dtype=dtype) for size in sizes]


def literal(**options):
    """The paper to the letter, without the relation."""
    return FreeKDLoss(CHANNELS, **{'relation': None, 'min_positions': 0, **options})


def prompt_path(folder, num_tokens=2, levels=3, grouping='level', count=4, channels=CHANNELS):
    groups = 1 + levels * (3 if grouping == 'band' else 1)
    generator = torch.Generator().manual_seed(7)
    tokens = {i: torch.randn(groups, num_tokens, channels, generator=generator) for i in range(count)}
    file = PromptFile(
        {f'neck[{level}]': value for level, value in tokens.items()},
        levels=levels,
        num_tokens=num_tokens,
        grouping=grouping,
    )
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
    loss = FreeKDLoss(CHANNELS, mode='code', prompt=path, loss_weight=3.0)
    value = loss(students, teachers)
    wanted = 3 * released_formula(students, teachers, tokens, num_tokens)
    rtol = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(value, wanted, rtol=rtol, atol=0)
    for own, other in zip_equal(torch.autograd.grad(value, students), torch.autograd.grad(wanted, students)):
        torch.testing.assert_close(own, other, rtol=rtol, atol=rtol * other.abs().max().item())


def naive_paper(students, teachers, tokens, grouping):
    """Loops over levels, images and bands with PyWavelets: the sum over all coefficients over their number."""

    def bands_of(plane):
        low, *coarse_first = pywt.wavedec2(plane, 'haar', mode='zero', level=3)
        return [low] + [band for detail in reversed(coarse_first) for band in detail]

    total, count = 0.0, 0
    for level, (student, teacher) in enumerate(zip_equal(students, teachers)):
        for own, other in zip_equal(student.numpy(), teacher.numpy()):
            a = [np.stack(band) for band in zip_equal(*map(bands_of, other))]
            b = [np.stack(band) for band in zip_equal(*map(bands_of, own))]
            for k in range(10):
                group, source = k, a[k]
                if grouping == 'level' and k > 0:
                    group = 1 + (k - 1) // 3
                    source = sum(a[3 * group - 2 : 3 * group + 1])
                masks = 1 / (1 + np.exp(-np.einsum('tc,chw->thw', tokens[level][group].numpy(), source)))
                total += sum(np.abs(mask * b[k] - mask * a[k]).sum() for mask in masks)
                count += a[k].size
    return total / count


@pytest.mark.parametrize('grouping', ['band', 'level'])
def test_paper_mode_is_one_sum_over_all_coefficients(tmp_path, grouping):
    path, tokens = prompt_path(tmp_path, 3, grouping=grouping)
    students, teachers = features(2, dtype=torch.float64), features(3, dtype=torch.float64)
    wanted = naive_paper(students, teachers, tokens, grouping)
    assert literal(prompt=path)(students, teachers).item() == pytest.approx(wanted, rel=1e-9)


def test_paper_mode_goes_only_as_deep_as_leaves_16_positions():
    """40 x 30, 10 x 8 and 7 x 4: three levels (5 x 4), one level (5 x 4), none; 0 goes to the bottom of all."""
    sizes = [(40, 30), (10, 8), (7, 4)]
    students, teachers = features(2, sizes), features(3, sizes)
    total, count = 0.0, 0
    for student, teacher, depth in zip_equal(students[:2], teachers[:2], (3, 1)):
        bands = dwt2d(student - teacher, depth)
        for band in (bands.low, *(band for detail in bands.high for band in detail)):
            total, count = total + band.abs().sum(), count + band.numel()
    torch.testing.assert_close(FreeKDLoss(CHANNELS, relation=None)(students, teachers), total / count)
    assert literal()(students, teachers) != total / count


def energy_of_the_low_band(gradient):
    low = dwt2d(gradient, 3).low
    return (low.square().sum() / gradient.square().sum()).item()


def test_the_low_band_has_one_of_64_parts_of_the_gradient():
    """Each coefficient pulls alike; the low band has 1 / 64 of them, for smooth features as for white ones."""
    white, teacher = (x[0] for x in (features(2, [(64, 64)]), features(3, [(64, 64)])))
    smooth = F.avg_pool2d(white, 9, 1, 4)
    for student in (white, teacher + smooth):
        student = student.requires_grad_()
        (gradient,) = torch.autograd.grad(literal()(student, teacher), student)
        assert energy_of_the_low_band(gradient) == pytest.approx(1 / 64, rel=1e-3)


def test_one_weight_serves_all_sizes_and_the_scale_is_that_of_the_features():
    small, large = ([features(seed, [size])[0] for seed in (0, 1)] for size in ((16, 16), (64, 64)))
    values = [literal()(*pair) for pair in (small, large)]
    torch.testing.assert_close(*values, rtol=0.1, atol=0)
    torch.testing.assert_close(literal()(*(100 * side for side in large)), 100 * values[1])


@pytest.mark.parametrize(('mode', 'factor'), [('paper', 3.0), ('code', 0.5)])
def test_six_tokens_of_zero_weigh_all_positions_alike(tmp_path, mode, factor):
    """Their sum is 3 in the paper, their mean 1/2 in the released code."""
    file = PromptFile({f'neck[{i}]': torch.zeros(4, 6, CHANNELS) for i in range(4)}, num_tokens=6)
    path = str(save_prompt(file, tmp_path / 'zero.pth'))
    options = dict(relation=None, min_positions=0) if mode == 'paper' else {}
    masked, plain = (FreeKDLoss(CHANNELS, mode=mode, prompt=p, **options) for p in (path, None))
    torch.testing.assert_close(masked(features(0), features(1)), factor * plain(features(0), features(1)))


def test_half_batches_give_the_same_loss_and_gradient_as_the_whole_batch(tmp_path):
    """What two processes with one image each compute, averaged as DDP does, is what one process with both does."""
    path, _ = prompt_path(tmp_path)
    students, teachers = [level.requires_grad_() for level in features(0)], features(1)
    loss = FreeKDLoss(CHANNELS, prompt=path)
    whole = loss(students, teachers)
    halves = sum(loss([s[i : i + 1] for s in students], [t[i : i + 1] for t in teachers]) / 2 for i in range(2))
    torch.testing.assert_close(whole, halves)
    for own, other in zip_equal(torch.autograd.grad(whole, students), torch.autograd.grad(halves, students)):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize('mode', ['paper', 'code'])
@pytest.mark.parametrize('size', [(5, 6), (8, 8)])
def test_gradients_agree_with_finite_differences(tmp_path, mode, size):
    path, _ = prompt_path(tmp_path, 3, levels=2, count=1, channels=2)
    options = dict(relation=None, min_positions=0) if mode == 'paper' else {}
    loss = FreeKDLoss(2, levels=2, mode=mode, prompt=path, **options)
    student, teacher = (features(seed, [size], channels=2, dtype=torch.float64)[0] for seed in (4, 5))
    assert torch.autograd.gradcheck(lambda x: loss([x], [teacher]), (student.requires_grad_(),), eps=1e-7, atol=1e-5)


def test_no_gradient_where_features_are_equal():
    student, teacher = features(0, [(16, 16)])[0], features(1, [(16, 16)])[0]
    student[..., :8] = teacher[..., :8]
    gradient = torch.autograd.grad(literal()(student.requires_grad_(), teacher), student)[0]
    assert not gradient[..., :8].any()
    assert gradient[..., 8:].any()


def test_a_second_backward_and_a_scaled_gradient_are_right():
    student, teacher = features(0, [(12, 17)])[0].requires_grad_(), features(1, [(12, 17)])[0]
    value = FreeKDLoss(CHANNELS)(student, teacher)
    first = torch.autograd.grad(value, student, retain_graph=True)[0]
    second = torch.autograd.grad(value, student, torch.tensor(2.0))[0]
    torch.testing.assert_close(second, 2 * first)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    levels=st.integers(1, 4),
    options=st.sampled_from(
        [
            dict(mode='code'),
            dict(relation=None),
            dict(relation=None, min_positions=0),
            dict(min_positions=0),
            dict(relation='printed', min_positions=0),
        ]
    ),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    constant=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_loss_is_a_finite_distance(batch, channels, height, width, levels, options, scale, constant, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(height, width), ((height + 1) // 2, (width + 1) // 2)]
    make = lambda size: scale * torch.randn(batch, channels, *size, generator=generator)  # noqa: E731
    students = [make(size).requires_grad_() for size in sizes]
    teachers = [torch.full_like(make(size), scale) if constant else make(size) for size in sizes]
    copies = [level.detach().clone() for level in (*students, *teachers)]
    loss = FreeKDLoss(channels, levels=levels, **options)
    value = loss(students, teachers)
    gradients = torch.autograd.grad(value, students)
    assert value.dtype == torch.float32
    assert value.ndim == 0
    assert torch.isfinite(value)
    assert value >= 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert all(torch.equal(old, new) for old, new in zip_equal(copies, (*students, *teachers)))
    order = torch.randperm(batch, generator=generator)
    shuffled = loss([s[order] for s in students], [t[order] for t in teachers])
    torch.testing.assert_close(shuffled, value, rtol=1e-4, atol=0)
    assert loss([t.clone() for t in teachers], teachers) == 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('mode', ['paper', 'code'])
def test_half_precision_is_computed_in_float32(tmp_path, dtype, mode):
    loss = FreeKDLoss(CHANNELS, prompt=prompt_path(tmp_path)[0], mode=mode)
    check_half_precision(loss, features(0), features(1), dtype)


def test_channels_last_and_non_contiguous_features_give_the_same(tmp_path):
    loss, sizes = FreeKDLoss(CHANNELS, prompt=prompt_path(tmp_path, count=2)[0]), [(12, 10), (6, 8)]
    check_memory_formats(loss, features(0, sizes), features(1, sizes))


def test_an_empty_batch_gives_zero_and_a_gradient():
    loss = FreeKDLoss(CHANNELS)
    students = [torch.zeros(0, CHANNELS, 16, 16, requires_grad=True) for _ in range(2)]
    value = loss(students, [level.detach() for level in students])
    assert value == 0
    value.backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_one_tensor_is_one_level_and_the_terms_add_up():
    student, teacher = features(0, [(9, 8)])[0], features(1, [(9, 8)])[0]
    loss = FreeKDLoss(CHANNELS)
    assert loss(student, teacher) == loss.terms['level0/all']
    value = loss([student, student], [teacher, teacher])
    assert sorted(loss.terms) == ['level0/all', 'level1/all']
    torch.testing.assert_close(sum(loss.terms.values()), value.detach())
    assert not any(term.requires_grad for term in loss.terms.values())


class CornerMasks(nn.Module):
    """A mask generator of somebody else: looks at the upper left corner only."""

    def forward(self, levels, depths):
        return tuple(self.corner(level, depth) for level, depth in zip_equal(levels, depths))

    @staticmethod
    def corner(level, depth):
        def mask(band):
            out = band.new_zeros(len(band), 1, *band.shape[2:])
            out[..., 0, 0] = 0.5
            return out

        bands = dwt2d(level, depth)
        high = tuple(WaveletDetail(*map(mask, detail)) for detail in bands.high)
        return WaveletBands(mask(bands.low), high, bands.shape)


def test_another_mask_generator_can_be_tried_by_config():
    MODELS.register_module(module=CornerMasks, force=True)
    loss = literal(prompt=dict(type='freekd_mm.CornerMasks'))
    student, teacher = features(0, [(16, 16)])[0].requires_grad_(), features(1, [(16, 16)])[0]
    gradient = torch.autograd.grad(loss(student, teacher), student)[0]
    assert gradient[:, :, :8, :8].abs().sum() > 0
    assert gradient[:, :, 8:].abs().sum() == 0


def test_is_built_from_a_config_and_copies(tmp_path):
    path, _ = prompt_path(tmp_path, count=2)
    loss = MODELS.build(dict(type='freekd_mm.FreeKDLoss', channels=CHANNELS, prompt=path))
    assert isinstance(loss, FreeKDLoss)
    twin = copy.deepcopy(loss)
    twin.load_state_dict(loss.state_dict())
    students, teachers = [level.requires_grad_() for level in features(0, SIZES[:2])], features(1, SIZES[:2])
    wanted = loss(students, teachers)
    torch.testing.assert_close(twin(students, teachers), wanted)
    trained = [name for name, parameter in loss.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(name.startswith('gate.') for name in trained), 'the prompt is frozen'


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(mode='papr'), ValueError, "mode should be one of 'paper', 'code', but got 'papr'.* mean 'paper'"),
        (dict(mode='tuned'), ValueError, "got 'tuned': that loss is freekd_mm.WaveletLoss"),
        (dict(loss_weight='1'), TypeError, 'loss_weight should be a number'),
        (dict(relation='bouned'), ValueError, "relation should be one of 'bounded', 'printed'.* mean 'bounded'"),
        (dict(levels=0), ValueError, 'levels should be greater than 0'),
        (dict(min_positions=1.5), TypeError, 'min_positions should be an integer'),
        (dict(channels='256'), TypeError, 'channels should be an integer'),
        (dict(mode='code', relation='bounded'), ValueError, "left out with mode='code'.*got relation='bounded'"),
        (dict(mode='code', min_positions=4), ValueError, "left out with mode='code'.*min_positions=4"),
        (dict(prompt='no/such/file.pth'), FileNotFoundError, 'no/such/file.pth'),
    ],
)
def test_wrong_options_name_what_is_available(options, error, message):
    with pytest.raises(error, match=message):
        FreeKDLoss(**{'channels': CHANNELS, **options})


def test_a_prompt_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'levels should be 2, as in the prompt file .*, but got 3'):
        FreeKDLoss(CHANNELS, prompt=prompt_path(tmp_path, levels=2)[0])
    with pytest.raises(ValueError, match=r"grouping should be 'level' with mode='code', but got 'band'"):
        FreeKDLoss(CHANNELS, mode='code', prompt=prompt_path(tmp_path, grouping='band')[0])


def test_levels_of_other_channels_work():
    teachers = [torch.randn(2, c, s, s) for c, s in ((4, 16), (6, 8), (8, 8))]
    students = [torch.randn_like(level).requires_grad_() for level in teachers]
    loss = FreeKDLoss((4, 6, 8))
    loss(students, teachers).backward()
    assert all(torch.isfinite(level.grad).all() and level.grad.any() for level in students)
    assert all(parameter.grad is not None for parameter in loss.parameters())
