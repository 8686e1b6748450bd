"""FiGKDLoss against PyWavelets, position by position."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, softmax

from freekd_mm.compat.versions import zip_equal
from freekd_mm.losses import FiGKDLoss
from freekd_mm.registry import MODELS

# PyWavelets warns beyond the usual maximum of levels, which small class counts need.
pytestmark = pytest.mark.filterwarnings('ignore:Level value')


def naive_position(student, teacher, wavelet, levels, target, order, distance, normalize, temperature):
    """The distance at one position, from the formulas; logits are arrays of length K."""
    if order == 'teacher':
        index = sorted(range(len(teacher)), key=lambda k: -teacher[k])
        student, teacher = student[index], teacher[index]
    parts = []
    for logits in (student, teacher):
        if normalize == 'standard':
            logits = (logits - logits.mean()) / np.sqrt(logits.var() + 1e-6)
        low, *_ = pywt.wavedec(logits, wavelet, mode='zero', level=levels)
        if normalize == 'center':
            logits = logits - logits.mean()
        _, *details = pywt.wavedec(logits, wavelet, mode='zero', level=levels)
        parts.append({'content': low, 'detail': np.concatenate(details[::-1])})
    value = 0.0
    for name in ('detail', 'content') if target == 'both' else (target,):
        s, t = parts[0][name], parts[1][name]
        if distance == 'mse':
            value += np.mean((t - s) ** 2)
        else:
            log_t, log_s = log_softmax(t / temperature), log_softmax(s / temperature)
            value += temperature**2 * np.sum(np.exp(log_t) * (log_t - log_s))
    return value


def naive(students, teachers, num_classes=None, foreground=None, background=None, **options):
    """The whole loss with loops; ``foreground`` is None, 'sigmoid' or 'softmax'."""
    options = {
        'wavelet': 'haar',
        'levels': 1,
        'target': 'detail',
        'order': 'index',
        'distance': 'mse',
        'normalize': 'center',
        'temperature': 1.0,
        **options,
    }
    images = []
    for n in range(students[0].shape[0]):
        values, weights = [], []
        for student, teacher in zip_equal(students, teachers):
            classes = num_classes or student.shape[1]
            s = student[n].numpy().reshape(-1, classes, int(np.prod(student.shape[2:])))
            t = teacher[n].numpy().reshape(s.shape)
            for anchor in range(s.shape[0]):
                for position in range(s.shape[2]):
                    logits = t[anchor, :, position]
                    values.append(naive_position(s[anchor, :, position], logits, **options))
                    probability = expit(logits) if foreground == 'sigmoid' else softmax(logits)
                    if background is not None:
                        probability = np.delete(probability, background)
                    weights.append(probability.max() if foreground else 1.0)
        images.append(np.average(values, weights=weights))
    return np.mean(images)


def pair(*shapes, dtype=torch.float64, seed=0):
    """Student's and teacher's logits of the given shapes."""
    generator = torch.Generator().manual_seed(seed)
    students = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    teachers = [torch.randn(shape, generator=generator, dtype=dtype) * 2 for shape in shapes]
    return students, teachers


@pytest.mark.parametrize('order', ['index', 'teacher'])
@pytest.mark.parametrize('target', ['detail', 'content', 'both'])
@pytest.mark.parametrize(
    ('distance', 'temperature'),
    [('mse', 1.0), ('kl', 1.0), ('kl', 4.0)],
)
@pytest.mark.parametrize(
    ('wavelet', 'levels', 'classes'), [('haar', 1, 7), ('haar', 2, 8), ('db2', 2, 9), ('sym4', 1, 5)]
)
@pytest.mark.parametrize('normalize', ['none', 'center', 'standard'])
def test_equals_the_formula(order, target, distance, temperature, wavelet, levels, classes, normalize):
    students, teachers = pair((2, classes, 2, 3))
    options = {
        'order': order,
        'target': target,
        'distance': distance,
        'normalize': normalize,
        'temperature': temperature,
        'wavelet': wavelet,
        'levels': levels,
    }
    loss = FiGKDLoss(**options, loss_weight=3.0)(students[0], teachers[0])
    assert loss.item() == pytest.approx(3 * naive(students, teachers, **options), rel=1e-10)


def test_with_an_odd_number_of_classes_the_last_is_no_raw_logit():
    _, (teacher,) = pair((4, 3))
    assert FiGKDLoss()(teacher + 5, teacher).item() == pytest.approx(0, abs=1e-20)
    assert FiGKDLoss(normalize='none')(teacher + 5, teacher).item() == pytest.approx(25 / 2 / 2, rel=1e-9)


def test_standardised_logits_have_no_scale():
    _, (teacher,) = pair((4, 6))
    assert FiGKDLoss(normalize='standard')(3 * teacher, teacher).item() == pytest.approx(0, abs=1e-10)
    assert FiGKDLoss()(3 * teacher, teacher).item() > 0.1


@pytest.mark.parametrize('shape', [(3, 5), (3, 2), (2, 6, 7), (2, 4, 3, 2)])
def test_every_rank(shape):
    students, teachers = pair(shape)
    assert FiGKDLoss()(students[0], teachers[0]).item() == pytest.approx(naive(students, teachers), rel=1e-10)


@pytest.mark.parametrize('distance', ['mse', 'kl'])
@pytest.mark.parametrize(
    ('head', 'options'),
    [
        (None, {}),
        ('sigmoid', {'foreground': True, 'use_sigmoid': True}),
        ('softmax', {'foreground': True}),
        ('softmax', {'foreground': True, 'background': -1}),
    ],
)
@pytest.mark.parametrize('anchors', [1, 3])
def test_dense_head(distance, head, options, anchors):
    students, teachers = pair((2, anchors * 5, 4, 3), (2, anchors * 5, 2, 2), (2, anchors * 5, 1, 1))
    loss = FiGKDLoss(num_classes=5, distance=distance, **options)(tuple(students), tuple(teachers))
    expected = naive(students, teachers, 5, head, options.get('background'), distance=distance)
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_query_head_has_its_classes_last():
    students, teachers = pair((2, 6, 5))
    swapped = FiGKDLoss()(students[0].mT, teachers[0].mT)
    assert FiGKDLoss(class_dim=-1)(students[0], teachers[0]).item() == pytest.approx(swapped.item(), rel=1e-12)


def test_haar_detail_of_an_even_number_of_classes_is_the_mean_of_pair_differences():
    (student,), (teacher,) = pair((4, 6))
    difference = student - teacher
    expected = ((difference[:, 0::2] - difference[:, 1::2]) ** 2 / 2).mean()
    assert FiGKDLoss()(student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_constant_on_all_logits_is_no_detail():
    _, (teacher,) = pair((4, 6))
    assert FiGKDLoss()(teacher + 5, teacher).item() == pytest.approx(0, abs=1e-20)
    assert FiGKDLoss(target='content')(teacher + 5, teacher).item() == pytest.approx(50, rel=1e-9)


def test_order_teacher_does_not_depend_on_the_numbering_of_the_classes():
    (student,), (teacher,) = pair((4, 9, 3, 3))
    permutation = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    for distance in ('mse', 'kl'):
        loss = FiGKDLoss(order='teacher', distance=distance)
        value = loss(student, teacher).item()
        assert loss(student[:, permutation], teacher[:, permutation]).item() == pytest.approx(value, rel=1e-10)
    plain = FiGKDLoss()
    assert plain(student[:, permutation], teacher[:, permutation]).item() != pytest.approx(
        plain(student, teacher).item(), rel=1e-3
    )


def test_foreground_follows_the_confident_positions():
    teacher = torch.full((1, 4, 1, 2), -8.0)
    teacher[0, 1, 0, 0] = 4.0
    students = [teacher.clone(), teacher.clone()]
    students[0][0, 0, 0, 0] += 1
    students[1][0, 0, 0, 1] += 1
    loss = FiGKDLoss(foreground=True, use_sigmoid=True)
    confident, background = (loss(student, teacher).item() for student in students)
    assert confident > 1000 * background > 0


@pytest.mark.parametrize('order', ['index', 'teacher'])
@pytest.mark.parametrize('options', [{}, {'distance': 'kl', 'temperature': 2.0, 'target': 'both', 'foreground': True}])
def test_gradient(order, options):
    students, teachers = pair((2, 6, 2, 2), (2, 6, 1, 1))
    loss = FiGKDLoss(order=order, num_classes=3, **options)
    inputs = [student.requires_grad_() for student in students]
    assert torch.autograd.gradcheck(lambda *levels: loss(levels, teachers), inputs)


def test_teacher_gets_no_gradient_and_inputs_stay():
    (student,), (teacher,) = pair((2, 5, 3, 3))
    student.requires_grad_()
    teacher.requires_grad_()
    before = student.detach().clone(), teacher.detach().clone()
    FiGKDLoss(order='teacher', distance='kl', foreground=True)(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert torch.equal(before[0], student)
    assert torch.equal(before[1], teacher)


@pytest.mark.parametrize('distance', ['mse', 'kl'])
def test_gradient_of_one_batch_is_the_mean_of_its_halves(distance):
    """What several processes need: no norm depends on the batch."""
    students, teachers = pair((4, 6, 3, 3), (4, 6, 2, 2))
    loss = FiGKDLoss(num_classes=3, distance=distance, foreground=True, use_sigmoid=True)
    whole = loss(students, teachers)
    halves = [
        loss([level[part] for level in students], [level[part] for level in teachers])
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert whole.item() == pytest.approx((halves[0] + halves[1]).item() / 2, rel=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('distance', ['mse', 'kl'])
def test_half_precision(dtype, distance):
    (student,), (teacher,) = pair((2, 20, 4, 4), dtype=torch.float32)
    student, teacher = student.to(dtype), teacher.to(dtype)
    loss = FiGKDLoss(distance=distance, foreground=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(student.float(), teacher.float()).item(), rel=1e-6)


@pytest.mark.parametrize('options', [{}, {'distance': 'kl', 'foreground': True, 'order': 'teacher', 'wavelet': 'db2'}])
@pytest.mark.parametrize('batch', [0, 1])
def test_small_batches(options, batch):
    student = torch.randn(batch, 6, 2, 2, requires_grad=True)
    loss = FiGKDLoss(num_classes=3, **options)(student, torch.randn(batch, 6, 2, 2))
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    if batch == 0:
        assert loss.item() == 0


def test_teacher_without_any_confidence():
    teacher = torch.full((2, 4, 2, 2), -1e4)
    loss = FiGKDLoss(foreground=True, use_sigmoid=True)(torch.randn(2, 4, 2, 2), teacher)
    assert torch.isfinite(loss)


def test_resize():
    student, teacher = torch.randn(2, 5, 4, 6), torch.randn(2, 5, 8, 12)
    with pytest.raises(ValueError, match=r'level 0 .* size \(8, 12\), but got \(4, 6\); resize=True'):
        FiGKDLoss()(student, teacher)
    small = F.interpolate(teacher, (4, 6), mode='bilinear', align_corners=False)
    assert torch.equal(FiGKDLoss(resize=True)(student, teacher), FiGKDLoss()(student, small))


def test_terms():
    students, teachers = pair((2, 5, 3, 3), (2, 5, 2, 2))
    loss = FiGKDLoss(target='both')
    total = loss(students, teachers)
    assert set(loss.terms) == {'level0/detail', 'level0/content', 'level1/detail', 'level1/content'}
    assert not any(term.requires_grad for term in loss.terms.values())
    mean = sum(
        positions * (loss.terms[f'level{level}/detail'] + loss.terms[f'level{level}/content'])
        for level, positions in enumerate((9, 4))
    )
    assert total.item() == pytest.approx(mean.item() / 13, rel=1e-12)


def test_channels_last():
    (student,), (teacher,) = pair((2, 10, 3, 4))
    loss = FiGKDLoss(num_classes=5)
    last = [logits.to(memory_format=torch.channels_last) for logits in (student, teacher)]
    assert loss(*last).item() == pytest.approx(loss(student, teacher).item(), rel=1e-12)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'wavelet': 'harr'}, "wavelet should be one of .*Did you mean 'haar'"),
        ({'levels': 0}, 'levels should be greater than 0, but got 0'),
        ({'target': 'details'}, "target should be one of .* but got 'details'. Did you mean 'detail'"),
        ({'order': 'teachers'}, "order should be one of .*Did you mean 'teacher'"),
        ({'normalize': 'centre'}, "normalize should be one of .*Did you mean 'center'"),
        ({'distance': 'l2'}, "distance should be one of 'mse', 'kl', but got 'l2'"),
        ({'temperature': 0}, 'temperature should be greater than 0'),
        ({'num_classes': 1}, 'num_classes should hold at least 2 classes, but got 1'),
        ({'class_dim': 2}, 'class_dim should be one of 1, -1, but got 2'),
        ({'use_sigmoid': True, 'background': -1}, 'background should be None with use_sigmoid=True'),
        ({'loss_weight': -1.0}, 'loss_weight should be at least 0'),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        FiGKDLoss(**options)


@pytest.mark.parametrize(
    ('options', 'student', 'teacher', 'message'),
    [
        ({}, (2, 80, 4, 4), (2, 20, 4, 4), r'level 0 .* same classes .* \(2, 80, 4, 4\) and \(2, 20, 4, 4\)'),
        ({'class_dim': -1}, (2, 9, 80), (2, 9, 20), 'same classes'),
        ({}, (2, 5), (2, 5, 1, 1), 'same classes'),
        ({}, (5,), (5,), 'same classes'),
        ({}, (2, 1, 4, 4), (2, 1, 4, 4), 'level 0 should hold at least 2 classes, but got 1'),
        ({'num_classes': 80}, (2, 84, 4, 4), (2, 84, 4, 4), 'multiple of num_classes=80, but got 84'),
        ({'distance': 'kl'}, (2, 2), (2, 2), "distance='kl' should have at least 2 coefficients, but got 1"),
        ({'foreground': True, 'background': 5}, (2, 5), (2, 5), r'background should be in \[-5, 4\], but got 5'),
    ],
)
def test_wrong_logits(options, student, teacher, message):
    with pytest.raises(ValueError, match=message):
        FiGKDLoss(**options)(torch.randn(student), torch.randn(teacher))


def test_wrong_number_of_levels():
    with pytest.raises(ValueError, match=r'as many levels as the teacher, but got 1 .* and 2'):
        FiGKDLoss()((torch.randn(1, 4),), (torch.randn(1, 4), torch.randn(1, 4)))


@settings(max_examples=40, deadline=None)
@given(
    classes=st.integers(3, 12),
    anchors=st.integers(1, 3),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    order=st.sampled_from(['index', 'teacher']),
    distance=st.sampled_from(['mse', 'kl']),
    target=st.sampled_from(['detail', 'content', 'both']),
    foreground=st.booleans(),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_properties(classes, anchors, size, order, distance, target, foreground, scale, seed):
    (student,), (teacher,) = pair((3, anchors * classes, *size), dtype=torch.float32, seed=seed)
    student, teacher = student * scale, teacher * scale
    loss = FiGKDLoss(
        num_classes=classes, order=order, distance=distance, target=target, foreground=foreground, use_sigmoid=True
    )
    value = loss(student, teacher)
    assert torch.isfinite(value)
    assert value.item() >= -1e-6
    assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    permuted = loss(student[[2, 0, 1]], teacher[[2, 0, 1]])
    assert permuted.item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6)


def test_registered():
    loss = MODELS.build({'type': 'freekd_mm.FiGKDLoss', 'num_classes': 80, 'use_sigmoid': True})
    assert isinstance(loss, FiGKDLoss)
    assert loss.target == 'logits'
