"""What dense heads say, scores and boxes together: LD (arXiv 2102.12252) and CrossKD (arXiv 2306.11369)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.losses.base import DistillLoss
from freekd_mm.losses.classes import divergence
from freekd_mm.registry import MODELS
from freekd_mm.tensors import full_precision, shapes

Boxes = Literal['distribution', 'deltas', 'distances']
BOXES = ('distribution', 'deltas', 'distances')
# As in mmdet's decoding: a box is at most so many times larger or smaller than its anchor.
LARGEST = math.log(1000 / 16)


class HeadLoss(DistillLoss):
    """Base of the losses on the predictions of dense heads with sigmoid scores.

    The levels are the scores of all levels, each (N, A K, H, W) with A anchors and K classes, followed by the boxes
    of all levels: (N, 4 bins, H, W) for ``'distribution'`` (one anchor), else (N, 4 A, H, W).

    Every anchor weighs as much as the teacher's largest class probability :math:`w_r`. Sums over the anchors are
    divided by the larger of the sum of all :math:`w_r` and 1, roughly the number of anchors on objects.

    Args:
        boxes: What the heads say of a box: ``'distribution'`` over the bins of each of its four edges (GFL),
            ``'deltas'`` of an anchor (RetinaNet, ATSS), ``'distances'`` to its edges (FCOS).
        loss_weight: Factor on the returned value.
    """

    target = 'logits'

    def __init__(self, boxes: Boxes, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        check_choice('boxes', boxes, BOXES)
        self.boxes = boxes
        self.shared: list[int] | None = None

    def share_classes(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """Looks at these classes alone: indices in the student's and in the teacher's scores."""
        self.shared = list(teacher)

    def compute(self, students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> Tensor:
        """Returns the sum of :meth:`parts` over the levels, divided; ``terms`` holds each part."""
        self._check(students, teachers)
        count = len(teachers) // 2
        sums: dict[str, Tensor] = {}
        total_weight = teachers[0].new_zeros((), dtype=torch.float32)
        for level in range(count):
            student, teacher = (self._by_edge(full_precision(x[count + level])) for x in (students, teachers))
            anchors = teacher.shape[1]
            scores = [full_precision(x[level]).unflatten(1, (anchors, -1)).flatten(3) for x in (students, teachers)]
            weights = self._kept(scores[1]).amax(2).sigmoid()
            total_weight = total_weight + weights.sum()
            for name, part in self.parts(scores[0], scores[1], student, teacher, weights).items():
                sums[name] = sums[name] + part if name in sums else part
        divided = {name: value / total_weight.clamp(min=1) for name, value in sums.items()}
        self.terms = {name: value.detach() for name, value in divided.items()}
        values = list(divided.values())
        return sum(values[1:], values[0])

    def parts(
        self, scores_s: Tensor, scores_t: Tensor, boxes_s: Tensor, boxes_t: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Returns the sums over one level's anchors by name.

        Args:
            scores_s: (N, A, K, P) of the student, for P positions.
            scores_t: (N, A, K, P) of the teacher.
            boxes_s: (N, A, 4, P), or (N, 1, 4, bins, P), of the student.
            boxes_t: The same of the teacher.
            weights: (N, A, P).
        """
        raise NotImplementedError

    def _check(self, students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> None:
        name, count = type(self).__name__, len(teachers) // 2
        if len(teachers) % 2:
            raise ValueError(
                f'{name}: there should be as many levels of scores as of boxes, but got {len(teachers)} levels in '
                "all; tap 'bbox_head[0]' and 'bbox_head[1]'"
            )
        for level, (student, teacher) in enumerate(zip_equal(students[count:], teachers[count:])):
            if student.shape != teacher.shape or teacher.ndim != 4 or teacher.shape[1] % 4:
                raise ValueError(
                    f'{name}: at level {level} the boxes of student and teacher should be (N, 4 x anchors or bins, H, '
                    f'W) with the same anchors, bins and strides, but got {shapes([student])} and {shapes([teacher])}'
                )
            if self.boxes == 'distribution' and teacher.shape[1] < 8:
                raise ValueError(
                    f'{name}: the boxes should be distributions over at least 2 bins an edge (GFLHead has them, with '
                    f'its reg_max), but got {shapes([teacher])}, four numbers a box'
                )

    def _by_edge(self, boxes: Tensor) -> Tensor:
        shape = (1, 4, -1) if self.boxes == 'distribution' else (-1, 4)
        return boxes.unflatten(1, shape).flatten(-2)

    def _kept(self, scores: Tensor) -> Tensor:
        """Returns the scores (N, A, k, P) of the classes that both sides know."""
        return scores if self.shared is None else scores[:, :, self.shared]


@MODELS.register_module()
class LDLoss(HeadLoss):
    r"""Localisation distillation: the divergence of the distributions over the edges of the boxes.

    For every anchor r and edge e with the logits z over the bins, :math:`p = \mathrm{softmax}(z / T)`:

    .. math::
        L = \frac{T^2}{\max(\sum_r w_r, 1)} \sum_r w_r \frac{1}{4} \sum_e KL(p^t_{r,e} \,\|\, p^s_{r,e})

    The weight :math:`w_r` is the teacher's largest class probability. The paper has a main region (the
    positives) and a valuable region (by DIoU) instead, which need the labels' assignment.

    Args:
        temperature: T.
        loss_weight: Factor on the returned value. mmdet's LDHead takes the mean over the n + 1 bins where the
            divergence has the sum: its weight 0.25 is 0.25 / (n + 1) here.
    """

    def __init__(self, temperature: float = 10.0, loss_weight: float = 1.0) -> None:
        super().__init__('distribution', loss_weight)
        check_positive('temperature', temperature)
        self.temperature = temperature

    def parts(
        self, scores_s: Tensor, scores_t: Tensor, boxes_s: Tensor, boxes_t: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Returns ``{'box': ...}``."""
        return {'box': (weights * edge_divergence(boxes_s, boxes_t, self.temperature)).sum()}


@MODELS.register_module()
class CrossKDLoss(HeadLoss):
    r"""Compares cross-head predictions (the teacher's head on the student's features) with the teacher's.

    With the probabilities p (sigmoid of the scores) of every anchor r and class k, and the boxes b:

    .. math::
        L = \frac{1}{\max(\sum_r w_r, 1)} \sum_r \Big(
            \lambda_c \sum_k |p^t - p^s|^\beta\, BCE(p^s, p^t) + \lambda_b\, w_r\, D(b^s, b^t) \Big)

    D is one minus the GIoU of the decoded boxes, or for ``'distribution'`` the divergence of :class:`LDLoss`.
    The GIoU does not change with the place and size of an anchor, so anchors are not needed.

    Args:
        boxes: See :class:`HeadLoss`.
        beta: Exponent of the focal factor.
        temperature: T of ``'distribution'``.
        stds: ``target_stds`` of the head's box coder, for ``'deltas'``.
        cls_weight: Factor on the classes.
        box_weight: Factor on the boxes; by default that of the released configs, 4 for ``'distribution'``, else 1.
        loss_weight: Factor on the returned value.
    """

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
        super().__init__(boxes, loss_weight)
        check_positive('beta', beta)
        check_positive('temperature', temperature)
        check_positive('cls_weight', cls_weight, zero=True)
        if box_weight is not None:
            check_positive('box_weight', box_weight, zero=True)
        if len(stds) != 4 or min(stds) <= 0:
            raise ValueError(f'stds should be four numbers greater than 0, but got {stds!r}')
        self.beta, self.temperature, self.stds, self.cls_weight = beta, temperature, tuple(stds), cls_weight
        self.box_weight = (4.0 if boxes == 'distribution' else 1.0) if box_weight is None else box_weight

    def parts(
        self, scores_s: Tensor, scores_t: Tensor, boxes_s: Tensor, boxes_t: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Returns ``{'cls': ..., 'box': ...}``."""
        if scores_s.shape != scores_t.shape:
            raise ValueError(
                f"CrossKDLoss: the scores should both come from the teacher's head, but got {shapes([scores_s])} and "
                f'{shapes([scores_t])}; set through=dict(start=...) in the entry'
            )
        student, target = self._kept(scores_s), self._kept(scores_t).sigmoid()
        focal = (student.sigmoid() - target).abs() ** self.beta
        cls = (focal * F.binary_cross_entropy_with_logits(student, target, reduction='none')).sum()
        if self.boxes == 'distribution':
            distance = edge_divergence(boxes_s, boxes_t, self.temperature)
        else:
            corners_s, corners_t = (decode(boxes, self.boxes, self.stds) for boxes in (boxes_s, boxes_t))
            distance = 1 - giou(corners_s, corners_t)
        return {'cls': self.cls_weight * cls, 'box': self.box_weight * (weights * distance).sum()}


def edge_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns T^2 KL(teacher || student) (N, 1, P), the mean over the edges of logits (N, 1, 4, bins, P)."""
    return temperature**2 * divergence(student, teacher, temperature, dim=3).mean(2)


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
    union = sum((box[:, :, 2:] - box[:, :, :2]).prod(2) for box in (a, b)) - inner
    return inner / union.clamp(min=eps) - (outer - union) / outer
