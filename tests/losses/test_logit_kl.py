"""LogitKLLoss against the formula, position by position, and against mmdet's; classes that are shared in part."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax

from freekd_mm.losses import FiGKDLoss, LogitKLLoss


def pair(student, teacher=None, dtype=torch.float64):
    """Student's and teacher's logits of the given shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = (student, teacher or student)
    return [2 * torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def naive(student, teacher, temperature, use_sigmoid=False):
    """The divergence at one position; logits are arrays of length K."""
    s, t = student / temperature, teacher / temperature
    if not use_sigmoid:
        return temperature**2 * np.sum(softmax(t) * (log_softmax(t) - log_softmax(s)))
    p, q = expit(t), expit(s)
    return temperature**2 * np.sum(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


@pytest.mark.parametrize('use_sigmoid', [False, True])
@pytest.mark.parametrize('foreground', [False, True])
@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_equals_the_formula(use_sigmoid, foreground, temperature):
    student, teacher = pair((2, 2 * 5, 2, 3))
    values, weights = np.zeros((2, 12)), np.ones((2, 12))
    for n in range(2):
        s, t = (x[n].reshape(2, 5, 6).numpy() for x in (student, teacher))
        for index, (anchor, position) in enumerate(np.ndindex(2, 6)):
            logits = t[anchor, :, position]
            values[n, index] = naive(s[anchor, :, position], logits, temperature, use_sigmoid)
            if foreground:
                weights[n, index] = (expit(logits) if use_sigmoid else softmax(logits)).max()
    loss = LogitKLLoss(temperature, num_classes=5, use_sigmoid=use_sigmoid, foreground=foreground, loss_weight=2.0)
    expected = 2 * np.mean([np.average(v, weights=w) for v, w in zip(values, weights)])
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    assert set(loss.terms) == {'level0/kl'}


def test_it_is_k_times_mmdets_which_takes_the_mean_over_the_classes():
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss

    student, teacher = pair((4, 7))
    theirs = KnowledgeDistillationKLDivLoss(T=3)(student, teacher)
    assert LogitKLLoss(3.0)(student, teacher).item() == pytest.approx(7 * theirs.item(), rel=1e-10)


@pytest.mark.parametrize('use_sigmoid', [False, True])
def test_gradient_zero_at_equality_and_half_precision(use_sigmoid):
    student, teacher = pair((2, 4, 3, 2))
    loss = LogitKLLoss(2.0, use_sigmoid=use_sigmoid)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())
    assert loss(teacher, teacher).item() == 0
    halves = [x.detach().to(torch.bfloat16) for x in (student, teacher)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = loss(*halves)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(*(x.float() for x in halves)).item(), rel=1e-6)
    empty = torch.zeros(0, 4, 3, 2, requires_grad=True)
    loss(empty, empty.detach()).backward()
    assert empty.grad is not None


def test_one_class_needs_a_sigmoid():
    student, teacher = pair((2, 1, 3, 3))
    assert LogitKLLoss(use_sigmoid=True)(student, teacher) > 0
    with pytest.raises(ValueError, match='at least 2 classes, but got 1: the softmax of one is always 1'):
        LogitKLLoss()(student, teacher)


@pytest.mark.parametrize('kind', [LogitKLLoss, FiGKDLoss])
@pytest.mark.parametrize('anchors', [1, 2])
def test_shared_classes_alone_are_compared(kind, anchors):
    """A softmax is renormalised over them: it is the loss on logits that have no other classes."""
    student, teacher = pair((2, anchors * 3, 2, 2), (2, anchors * 5, 2, 2))
    loss = kind(num_classes=3)
    with pytest.raises(ValueError, match='should score the same classes'):
        loss(student, teacher)
    loss.share_classes([2, 0], [1, 4])
    s, t = (x.unflatten(1, (anchors, -1)) for x in (student, teacher))
    alone = s[:, :, [2, 0]].flatten(1, 2), t[:, :, [1, 4]].flatten(1, 2)
    assert loss(student, teacher).item() == pytest.approx(kind(num_classes=2)(*alone).item(), rel=1e-12)


def test_the_background_stays_beside_the_shared_classes():
    student, teacher = pair((2, 3, 2, 2), (2, 5, 2, 2))
    options = {'foreground': True, 'background': -1}
    loss = LogitKLLoss(num_classes=3, **options)
    loss.share_classes([0, 1], [3, 0])
    expected = LogitKLLoss(**options)(student, teacher[:, [3, 0, 4]])
    assert loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize('shared', [False, True])
def test_a_background_that_is_not_there_is_named(shared):
    loss = LogitKLLoss(background=9)
    if shared:
        loss.share_classes([0, 1], [0, 1])
    with pytest.raises(ValueError, match=r'background should be in \[-5, 4\], but got 9'):
        loss(*pair((2, 5, 2, 2), (2, 5, 2, 2)))


@pytest.mark.parametrize('use_sigmoid', [False, True])
def test_classes_that_are_not_there_do_not_count(use_sigmoid):
    """A head that reads texts gives the places behind the last word -inf."""
    student, teacher = pair((2, 6, 3), (2, 6, 3))
    loss = LogitKLLoss(class_dim=-1, use_sigmoid=use_sigmoid)
    padded = [torch.nn.functional.pad(x, (0, 2), value=-math.inf) for x in (student, teacher)]
    assert loss(*padded).item() == pytest.approx(loss(student, teacher).item(), rel=1e-12)


def test_too_few_shared_classes():
    with pytest.raises(ValueError, match='the classes that student and teacher share should hold at least 2 classes'):
        FiGKDLoss().share_classes([0], [3])
