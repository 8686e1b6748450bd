"""What all losses share: they see all levels at once, check their inputs, and keep their parts for the log."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from freekd_mm.checks import check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.tensors import Levels, as_levels, check_same_shapes, shapes


class DistillLoss(nn.Module):
    """Base of the losses of this package.

    ``forward(preds_S, preds_T)`` takes a tensor or a tuple of all levels, (N, C, H, W) each, from the student and from
    the teacher and returns one scalar; mmrazor's distillers call it in the same way. Subclasses implement
    :meth:`level_loss`, or :meth:`compute` for all levels together. The runtime reads these attributes:

    Attributes:
        multi_level: The loss takes all levels in one call (mmrazor's losses take one tensor).
        target: ``'features'`` (the runtime may project and resize the student's) or ``'logits'`` (it may not).
        any_shape: The loss compares features of other channels and sizes itself: no projection, no resizing.
        terms: Detached parts of the last value, for the log, e.g. ``{'level0/high': ...}``.

    Args:
        loss_weight: Factor on the returned value.
    """

    multi_level = True
    target = 'features'
    any_shape = False
    #: Name of a level's part in ``terms``.
    part = ''

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_positive('loss_weight', loss_weight, zero=True)
        self.loss_weight = loss_weight
        self.terms: dict[str, Tensor] = {}

    def forward(self, preds_S: Levels, preds_T: Levels) -> Tensor:
        """Returns the weighted loss between all levels; the teacher's get no gradient."""
        students = as_levels(preds_S, 'preds_S')
        teachers = tuple(level.detach() for level in as_levels(preds_T, 'preds_T'))
        if len(students) != len(teachers):
            raise ValueError(
                f'{type(self).__name__}: the student should have as many levels as the teacher, but got '
                f'{len(students)} ({shapes(students)}) and {len(teachers)} ({shapes(teachers)})'
            )
        self.terms = {}
        # Frequency sums lose too many digits in half precision, so every loss computes in float32 (or float64).
        with torch.autocast(students[0].device.type, enabled=False):
            return self.loss_weight * self.compute(students, teachers)

    def compute(self, students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> Tensor:
        """Returns the unweighted loss, here the sum over the levels; fills ``self.terms``."""
        if not self.any_shape:
            check_same_shapes(type(self).__name__, students, teachers)
        pairs = zip_equal(students, teachers)
        values = [self.level_loss(student, teacher, level) for level, (student, teacher) in enumerate(pairs)]
        self.terms = {f'level{level}/{self.part}': value.detach() for level, value in enumerate(values)}
        return sum(values[1:], values[0])

    def level_loss(self, student: Tensor, teacher: Tensor, level: int) -> Tensor:
        """Returns the loss of one level."""
        raise NotImplementedError
