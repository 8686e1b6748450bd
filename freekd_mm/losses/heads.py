"""The predictions of dense heads, scores and boxes together: LD (arXiv 2102.12252) and CrossKD (arXiv 2306.11369)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.losses.base import DistillLoss
from freekd_mm.losses.classes import divergence
from freekd_mm.registry import MODELS
from freekd_mm.tensors import full_precision, shapes

Boxes = Literal['distribution', 'deltas', 'distances']
# As in mmdet's decoding: a box is at most this many times larger or smaller than its anchor.
LARGEST = math.log(1000 / 16)


@MODELS.register_module()
class CrossKDLoss(DistillLoss):
    r"""Compares two sets of predictions of a dense head with sigmoid scores, anchor by anchor.

    For CrossKD the student's are those of the teacher's head on the student's features. With the probabilities p
    of every anchor r and class k, the boxes b and :math:`w_r = \max_k p^t_{r,k}`:

    .. math::
        L = \frac{1}{\max(\sum_r w_r, 1)} \sum_r \Big(
            \lambda_c \sum_k |p^t - p^s|^\beta\, BCE(p^s, p^t) + \lambda_b\, w_r\, D(b^s, b^t) \Big)

    D is one minus the GIoU of the decoded boxes, which does not change with the place and size of an anchor: anchors
    are not needed. For distributions over the bins of each edge e it is
    :math:`T^2 \tfrac{1}{4} \sum_e KL(p^t_e \,\|\, p^s_e)` with :math:`p_e = \mathrm{softmax}(b_e / T)`.

    The levels are the scores of all levels, each (N, A K, H, W) with A anchors and K classes, followed by the boxes
    of all levels: (N, 4 bins, H, W) for ``'distribution'`` (one anchor), else (N, 4 A, H, W).

    Args:
        boxes: How the head predicts a box: ``'distribution'`` (GFL), ``'deltas'`` of an anchor (RetinaNet, ATSS),
            ``'distances'`` to its edges (FCOS).
        beta: Exponent of the focal factor.
        temperature: T of ``'distribution'``.
        stds: ``target_stds`` of the head's box coder, for ``'deltas'``.
        cls_weight: Factor on the classes; with 0 the student's scores are not used.
        box_weight: Factor on the boxes; by default that of the released configs, 4 for ``'distribution'``, else 1.
        loss_weight: Factor on the returned value.
    """

    target = 'logits'

    def __init__(
        self,
        boxes: Boxes,
        beta: float = 1.0,
        temperature: float = 1.0,
        stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        cls_weight: float = 1.0,
        box_weight: float | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        check_choice('boxes', boxes, ('distribution', 'deltas', 'distances'))
        self.box_weight = (4.0 if boxes == 'distribution' else 1.0) if box_weight is None else box_weight
        check_positive('beta', beta)
        if beta < 1:
            raise ValueError(f'beta should be at least 1, where equal scores have a gradient, but got {beta!r}')
        check_positive('temperature', temperature)
        check_positive('cls_weight', cls_weight, zero=True)
        check_positive('box_weight', self.box_weight, zero=True)
        if not isinstance(stds, Sequence) or len(stds) != 4 or min(stds) <= 0:
            raise ValueError(f'stds should be four numbers greater than 0, but got {stds!r}')
        self.boxes, self.beta, self.temperature, self.stds = boxes, beta, temperature, tuple(stds)
        self.cls_weight = cls_weight
        self.shared: tuple[list[int], list[int]] | None = None

    def share_classes(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """Compares only these classes, given as indices in either side's scores."""
        self.shared = (list(student), list(teacher))

    def compute(self, students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> Tensor:
        """Returns the sum over the levels; ``terms`` has its parts ``'cls'`` and ``'box'``."""
        self._check(students, teachers)
        count = len(teachers) // 2
        # (N, A, 4, positions), or (N, 1, 4, bins, positions) of distributions.
        edges = (1, 4, -1) if self.boxes == 'distribution' else (-1, 4)
        sums = {'box': teachers[0].new_zeros(())}
        weights = teachers[0].new_zeros(())
        for level in range(count):
            boxes = (full_precision(x[count + level]) for x in (students, teachers))
            boxes_s, boxes_t = (x.unflatten(1, edges).flatten(-2) for x in boxes)
            scores = self._by_class(teachers[level], boxes_t.shape[1], 1)
            weight = scores.amax(2).sigmoid()
            weights = weights + weight.sum()
            sums['box'] = sums['box'] + (weight * self._apart(boxes_s, boxes_t)).sum()
            if self.cls_weight:
                cls = self._focal(self._by_class(students[level], boxes_t.shape[1], 0), scores)
                sums['cls'] = sums.get('cls', 0) + cls.sum()
        normaliser = weights.clamp(min=1)
        self.terms = {name: (value / normaliser).detach() for name, value in sums.items()}
        return (self.cls_weight * sums.get('cls', 0) + self.box_weight * sums['box']) / normaliser

    def _check(self, students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> None:
        name, count = type(self).__name__, len(teachers) // 2
        if len(teachers) % 2:
            raise ValueError(
                f'{name}: there should be as many levels of scores as of boxes, but got {len(teachers)} levels in '
                "all; tap 'bbox_head[0]' and 'bbox_head[1]'"
            )
        for level in range(count):
            boxes, scores = ([side[first + level] for side in (students, teachers)] for first in (count, 0))
            self._fit(level, 'boxes', boxes, boxes[1], 4)
            if self.boxes == 'distribution' and boxes[1].shape[1] < 8:
                raise ValueError(
                    f'{name}: the boxes should be distributions over at least 2 bins per edge (GFLHead has them, with '
                    f'its reg_max), but got {shapes(boxes[1:])}, four numbers per box'
                )
            anchors = 1 if self.boxes == 'distribution' else boxes[1].shape[1] // 4
            self._fit(level, 'scores', scores if self.cls_weight else scores[1:], boxes[1], anchors)

    def _fit(self, level: int, what: str, given: Sequence[Tensor], boxes: Tensor, unit: int) -> None:
        """Raises ValueError unless the tensors are where the boxes are, and of one shape, a multiple of the unit."""
        place = [x.shape[:1] + x.shape[2:] for x in (*given, boxes)]
        whole = all(x.ndim == 4 and x.shape[1] and x.shape[1] % unit == 0 for x in given) and len(set(place)) == 1
        # Each side has its own number of classes if those that both know are compared.
        if not whole or (len({x.shape for x in given}) > 1 and not (what == 'scores' and self.shared)):
            raise ValueError(
                f'{type(self).__name__}: at level {level} the {what} of student and teacher should be of one shape, '
                '(N, anchors x classes, H, W) and (N, 4 x anchors or bins, H, W), but got '
                f'{shapes(given)}, and boxes {shapes([boxes])}'
            )

    def _by_class(self, scores: Tensor, anchors: int, side: int) -> Tensor:
        """Returns the scores (N, A, k, positions) of the classes that both sides know."""
        scores = full_precision(scores).unflatten(1, (anchors, -1)).flatten(3)
        return scores if self.shared is None else scores[:, :, self.shared[side]]

    def _focal(self, student: Tensor, teacher: Tensor) -> Tensor:
        target = teacher.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(student, target, reduction='none')
        return (student.sigmoid() - target).abs() ** self.beta * entropy

    def _apart(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns D (N, A, positions)."""
        if self.boxes == 'distribution':
            return self.temperature**2 * divergence(student, teacher, self.temperature, dim=3).mean(2)
        corners_s, corners_t = (decode(boxes, self.boxes, self.stds) for boxes in (student, teacher))
        return 1 - giou(corners_s, corners_t)


@MODELS.register_module()
class LDLoss(CrossKDLoss):
    r"""Localisation distillation: the divergence of the distributions over the edges of the boxes.

    It is the box part of :class:`CrossKDLoss` on the student's own predictions. The weight :math:`w_r` is the
    teacher's largest class probability; the paper has a main region (the positives) and a valuable region (by DIoU)
    instead, which need the labels' assignment.

    Args:
        temperature: T.
        loss_weight: Factor on the returned value. mmdet's LDHead takes the mean over the n + 1 bins, the
            divergence the sum: its weight 0.25 is 0.25 / (n + 1) here.
    """

    def __init__(self, temperature: float = 10.0, loss_weight: float = 1.0) -> None:
        super().__init__(
            'distribution', temperature=temperature, cls_weight=0.0, box_weight=1.0, loss_weight=loss_weight
        )


def decode(boxes: Tensor, kind: Boxes, stds: Sequence[float]) -> Tensor:
    """Returns the corners (x1, y1, x2, y2) along dim 2 of boxes (N, A, 4, P), for an anchor of size 1 around 0."""
    if kind == 'distances':
        return torch.cat((-boxes[:, :, :2], boxes[:, :, 2:]), 2)
    boxes = boxes * boxes.new_tensor(stds)[:, None]
    half = boxes[:, :, 2:].clamp(-LARGEST, LARGEST).exp() / 2
    return torch.cat((boxes[:, :, :2] - half, boxes[:, :, :2] + half), 2)


def giou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Returns the generalised intersection over union (N, A, P) of corners (N, A, 4, P)."""
    inner = (torch.minimum(a[:, :, 2:], b[:, :, 2:]) - torch.maximum(a[:, :, :2], b[:, :, :2])).clamp(min=0).prod(2)
    outer = (torch.maximum(a[:, :, 2:], b[:, :, 2:]) - torch.minimum(a[:, :, :2], b[:, :, :2])).prod(2).clamp(min=eps)
    union = (sum((box[:, :, 2:] - box[:, :, :2]).prod(2) for box in (a, b)) - inner).clamp(min=eps)
    return inner / union - (outer - union) / outer
