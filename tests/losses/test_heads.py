"""LDLoss and CrossKDLoss against their formulas, anchor by anchor, and against mmdet's and torchvision's parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from freekd_mm.losses import CrossKDLoss, LDLoss

SIZES = ((4, 3), (2, 2))


def predictions(boxes='distribution', anchors=1, classes=3, bins=5, seed=0, dtype=torch.float64, batch=2):
    """Scores of two levels, then their boxes."""
    generator = torch.Generator().manual_seed(seed)
    channels = 4 * bins if boxes == 'distribution' else 4 * anchors
    levels = [
        torch.randn(batch, count, *size, generator=generator, dtype=dtype)
        for count in (anchors * classes, channels)
        for size in SIZES
    ]
    return tuple(level.abs() if boxes == 'distances' and index > 1 else level for index, level in enumerate(levels))


def anchors_of(levels, anchors=1):
    """Yields (scores (K,), box numbers) of every anchor of every image, from (scores..., boxes...)."""
    count = len(levels) // 2
    for level in range(count):
        scores, boxes = (x.numpy() for x in (levels[level], levels[count + level]))
        for n in range(scores.shape[0]):
            for row, column in np.ndindex(scores.shape[2:]):
                per_anchor = (x[n, :, row, column].reshape(anchors, -1) for x in (scores, boxes))
                yield from zip(*per_anchor)


def edges_apart(student, teacher, temperature):
    """T^2 times the mean over the edges of the divergence of two boxes of 4 x bins logits."""
    values = []
    for s, t in zip(student.reshape(4, -1), teacher.reshape(4, -1)):
        p, q = softmax(t / temperature), softmax(s / temperature)
        values.append(temperature**2 * np.sum(p * np.log(p / q)))
    return np.mean(values)


def corners(box, boxes, stds):
    """The box as mmdet decodes it, for an anchor of 30 x 20."""
    if boxes == 'distances':
        return torch.tensor([100 - box[0], 50 - box[1], 100 + box[2], 50 + box[3]])
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

    anchor = torch.tensor([[100.0, 50.0, 130.0, 70.0]], dtype=torch.float64)
    return DeltaXYWHBBoxCoder(target_stds=stds, clip_border=False).decode(anchor, torch.tensor(box)[None])[0]


def giou_of(first, second):
    from mmdet.structures.bbox import bbox_overlaps

    return bbox_overlaps(first[None], second[None], mode='giou', eps=1e-9).item()


@pytest.mark.parametrize('temperature', [1.0, 10.0])
def test_ld_equals_the_formula(temperature):
    students, teachers = predictions(), predictions(seed=1)
    total, weights = 0.0, 0.0
    for (_, student), (scores, teacher) in zip(anchors_of(students), anchors_of(teachers)):
        weight = expit(scores).max()
        total += weight * edges_apart(student, teacher, temperature)
        weights += weight
    loss = LDLoss(temperature, loss_weight=2.0)
    assert loss(students, teachers).item() == pytest.approx(2 * total / weights, rel=1e-10)
    assert set(loss.terms) == {'box'}


def test_ld_is_bins_times_mmdets_loss():
    """With one weight for all, mmdet's ``LDHead`` loss takes the mean over the bins."""
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss

    students, teachers = predictions(), [x if index > 1 else 0 * x for index, x in enumerate(predictions(seed=1))]
    rows = [torch.cat([x.permute(0, 2, 3, 1).reshape(-1, 5) for x in levels[2:]]) for levels in (students, teachers)]
    theirs = KnowledgeDistillationKLDivLoss(T=10)(*rows)
    assert LDLoss()(students, teachers).item() == pytest.approx(5 * theirs.item(), rel=1e-10)


@pytest.mark.parametrize(
    ('boxes', 'anchors', 'stds', 'size'),
    [
        ('distribution', 1, (1.0, 1.0, 1.0, 1.0), 1),
        ('deltas', 3, (1.0, 1.0, 1.0, 1.0), 1),
        ('deltas', 1, (0.1, 0.1, 0.2, 0.2), 1),
        ('deltas', 1, (1.0, 1.0, 1.0, 1.0), 10),  # beyond what mmdet decodes
        ('distances', 1, (1.0, 1.0, 1.0, 1.0), 1),
    ],
)
def test_crosskd_equals_the_formula(boxes, anchors, stds, size):
    students, teachers = (
        [level * size if index > 1 else level for index, level in enumerate(predictions(boxes, anchors, seed=seed))]
        for seed in (0, 1)
    )
    cls, box, weights = 0.0, 0.0, 0.0
    for student, teacher in zip(anchors_of(students, anchors), anchors_of(teachers, anchors)):
        p, q = expit(student[0]), expit(teacher[0])
        cls += np.sum(np.abs(q - p) ** 1.5 * -(q * np.log(p) + (1 - q) * np.log(1 - p)))
        weights += q.max()
        if boxes == 'distribution':
            box += q.max() * edges_apart(student[1], teacher[1], 2.0)
        else:
            box += q.max() * (1 - giou_of(*(corners(x[1], boxes, stds) for x in (student, teacher))))
    loss = CrossKDLoss(boxes, beta=1.5, temperature=2.0, stds=stds, cls_weight=3.0, box_weight=0.5)
    assert loss(students, teachers).item() == pytest.approx((3 * cls + 0.5 * box) / weights, rel=1e-6)
    assert loss.terms['cls'].item() == pytest.approx(cls / weights, rel=1e-10)
    default = CrossKDLoss(boxes, beta=1.5, temperature=2.0, stds=stds)
    box_weight = 4 if boxes == 'distribution' else 1
    assert default(students, teachers).item() == pytest.approx((cls + box_weight * box) / weights, rel=1e-6)


@pytest.mark.parametrize(
    ('loss', 'boxes'),
    [
        (LDLoss(2.0), 'distribution'),
        *((CrossKDLoss(boxes, beta=2.0), boxes) for boxes in ('distribution', 'deltas', 'distances')),
    ],
)
def test_gradient_equality_half_precision_and_empty_batches(loss, boxes):
    students, teachers = predictions(boxes), predictions(boxes, seed=1)
    inputs = [level.requires_grad_() for level in students]
    assert torch.autograd.gradcheck(lambda *levels: loss(levels, teachers), inputs)
    assert loss(teachers, teachers).item() == pytest.approx(0, abs=1e-12)
    halves = [[level.detach().half() for level in levels] for levels in (students, teachers)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = loss(*halves)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(*([x.float() for x in levels] for levels in halves)).item(), rel=1e-5)
    empty = [level.requires_grad_() for level in predictions(boxes, batch=0)]
    value = loss(empty, [level.detach() for level in empty])
    value.backward()
    assert value.item() == 0


def test_a_teacher_that_sees_nothing_is_not_blown_up():
    students, teachers = predictions(dtype=torch.float32), predictions(dtype=torch.float32, seed=1)
    dark = [level - 20 if index < 2 else level for index, level in enumerate(teachers)]
    assert 0 < LDLoss()(students, dark).item() < 1e-5


def test_the_confident_anchors_count():
    teachers = [level.clone() for level in predictions()]
    teachers[0][:], teachers[1][:] = -8, -8
    teachers[0][0, 1, 2, 1] = 4
    inside, outside = ([level.clone() for level in teachers] for _ in range(2))
    inside[2][0, 3, 2, 1] += 1
    outside[2][0, 3, 0, 0] += 1
    assert LDLoss()(inside, teachers) > 1000 * LDLoss()(outside, teachers) > 0


def test_shared_classes():
    """Left out classes have no say in the weights, nor are they compared; the teacher's indices count."""
    teachers = predictions()
    other = [level.clone() for level in teachers]
    other[0][:, 1] += 3
    for loss in (LDLoss(), CrossKDLoss('distribution')):
        students = [level * 0.9 if index < 2 else level + 0.1 * level**2 for index, level in enumerate(teachers)]
        shared = [[x[:, [2, 0]] if index < 2 else x for index, x in enumerate(side)] for side in (students, teachers)]
        alone = loss(*shared)
        before = loss(students, teachers), loss(students, other)
        loss.share_classes([2, 0], [2, 0])
        spoiled = [students[0] + 3 * torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1), *students[1:]]
        after = loss(students, teachers), loss(spoiled, other)
        assert after[0].item() == pytest.approx(alone.item(), rel=1e-12)
        assert before[0].item() != pytest.approx(before[1].item(), rel=1e-3)
        assert after[0].item() == pytest.approx(after[1].item(), rel=1e-12)


def test_shared_classes_are_matched_by_the_indices_of_either_side():
    """The teacher knows one class more, and has the two others the other way round."""
    teachers = predictions('deltas', anchors=2)
    scores = [level.unflatten(1, (2, 3))[:, :, [2, 0]].flatten(1, 2) for level in teachers[:2]]
    loss = CrossKDLoss('deltas')
    loss.share_classes([0, 1], [2, 0])
    assert loss((*scores, *teachers[2:]), teachers).item() == pytest.approx(0, abs=1e-12)
    other = [level.roll(1, 0) for level in scores]
    assert loss((*other, *teachers[2:]), teachers).item() > 1e-3
    with pytest.raises(ValueError, match=r'level 1 the scores .* but got \(2, 4, 2, 1\), \(2, 6, 2, 2\)'):
        loss((scores[0], scores[1][..., :1], *teachers[2:]), teachers)


def test_boxes_without_an_area_are_as_far_apart_as_in_mmdet():
    students = predictions('distances')
    nothing = [level if index < 2 else 0 * level for index, level in enumerate(students)]
    loss = CrossKDLoss('distances', cls_weight=0.0)
    weights = sum(float(level.amax(1).sigmoid().sum()) for level in nothing[:2])
    wanted = 1 - giou_of(torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    assert weights > 1
    assert loss(nothing, nothing).item() == pytest.approx(wanted) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ('loss', 'students', 'teachers', 'message'),
    [
        (LDLoss(), predictions('deltas'), predictions('deltas'), r'distributions over at least 2 bins .*GFLHead'),
        (
            LDLoss(),
            predictions(bins=4),
            predictions(bins=5),
            r'level 0 the boxes .* but got \(2, 16, 4, 3\), \(2, 20,',
        ),
        (LDLoss(), predictions()[:3], predictions()[:3], 'as many levels of scores as of boxes, but got 3 levels'),
        (CrossKDLoss('deltas'), predictions('deltas', classes=4), predictions('deltas'), 'level 0 the scores of'),
        (
            CrossKDLoss('deltas'),
            predictions('deltas', classes=2)[:2] + predictions('deltas', anchors=3)[2:],
            predictions('deltas', classes=2)[:2] + predictions('deltas', anchors=3)[2:],
            r'level 0 the scores .* but got \(2, 2, 4, 3\), \(2, 2, 4, 3\), and boxes \(2, 12, 4, 3\)',
        ),
        (
            LDLoss(),
            tuple(level[..., :1] if index < 2 else level for index, level in enumerate(predictions())),
            tuple(level[..., :1] if index < 2 else level for index, level in enumerate(predictions())),
            r'level 0 the scores .* but got \(2, 3, 4, 1\), and boxes \(2, 20, 4, 3\)',
        ),
    ],
)
def test_wrong_predictions(loss, students, teachers, message):
    with pytest.raises(ValueError, match=message):
        loss(students, teachers)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'boxes': 'delta'}, "boxes should be one of .*Did you mean 'deltas'"),
        ({'boxes': 'deltas', 'stds': (1, 1)}, r'stds should be four numbers greater than 0, but got \(1, 1\)'),
        ({'boxes': 'deltas', 'stds': None}, 'stds should be four numbers greater than 0, but got None'),
        ({'boxes': 'deltas', 'beta': 0}, 'beta should be greater than 0'),
        (
            {'boxes': 'deltas', 'beta': 0.5},
            'beta should be at least 1, where equal scores have a gradient, but got 0.5',
        ),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        CrossKDLoss(**options)
