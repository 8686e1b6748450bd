"""What the losses on class scores share: views by class, classes that both sides know, weights of the positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.losses.base import DistillLoss
from freekd_mm.tensors import full_precision, mean

# Positions whose teacher probabilities are all 0 in float32 must not divide by 0.
TINY = 1e-12
# A score that has no probability, in half precision too.
LOWEST = -1e4


class ClassLoss(DistillLoss):
    """Base of the losses that compare the classes' scores position by position.

    Accepted logits, a tensor or a tuple of levels: (N, K) of a classifier; (N, K, H, W) of a segmenter;
    (N, A K, H, W) of a dense head with A anchors, the classes of one anchor side by side as in mmdet;
    (..., K) of a query-based head with ``class_dim=-1``.

    The loss is the mean of :meth:`values` over all positions of all levels; every anchor of a dense head counts
    the same. With ``foreground`` the positions of an image are weighted by the teacher's largest class
    probability, the weights of an image (all levels together) divided by their sum.

    Args:
        num_classes: K of the student, for heads with several anchors; None takes all channels as the classes.
            Includes the background if a softmax head scores it.
        use_sigmoid: The scores go through a sigmoid, not through a softmax.
        foreground: Weight the positions by the teacher's largest class probability.
        background: Index of the background among the classes of a softmax head (-1 in mmdet), which
            ``foreground`` then leaves out; None if no class is the background.
        class_dim: 1 or -1, the axis of the classes.
        resize: Resize the teacher's (N, C, H, W) logits bilinearly to the student's size. If it is off,
            other sizes are an error.
        loss_weight: Factor on the returned value.
    """

    target = 'logits'
    #: Why one class is not enough.
    alone = ''

    def __init__(
        self,
        num_classes: int | None = None,
        use_sigmoid: bool = False,
        foreground: bool = False,
        background: int | None = None,
        class_dim: int = 1,
        resize: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        check_choice('class_dim', class_dim, (1, -1))
        if background is not None and use_sigmoid:
            raise ValueError('background should be None with use_sigmoid=True: a sigmoid head scores no background')
        # Not called num_classes: mmdet's NumClassCheckHook compares every such attribute with the data set.
        self.classes, self.use_sigmoid, self.foreground = num_classes, use_sigmoid, foreground
        self.background, self.class_dim, self.resize = background, class_dim, resize
        self.shared: tuple[list[int], list[int]] | None = None
        if num_classes is not None:
            check_positive('num_classes', num_classes, integer=True)
            self.check_count(num_classes, 'num_classes')

    def share_classes(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """Compares only these classes, given as indices in either side's scores; a background is kept."""
        self.check_count(len(student), 'the classes that student and teacher share')
        self.shared = (list(student), list(teacher))

    def check_count(self, classes: int, where: str) -> None:
        """Raises ValueError if there are too few classes to compare."""
        if classes < 2:
            raise ValueError(
                f'{type(self).__name__}: {where} should hold at least 2 classes, but got {classes}: {self.alone}. '
                'Distil the features instead'
            )

    def compute(self, students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> Tensor:
        """Returns the mean over all positions; ``terms['level0/<part>']`` holds each level's own mean."""
        totals, weight_sums = [], []
        for level, (student, teacher) in enumerate(zip_equal(students, teachers)):
            student, teacher = self._by_class(student, teacher, level)
            values = self.values(student, teacher, level)
            weights = self._weights(teacher) if self.foreground else torch.ones_like(values)
            totals.append((weights * values).sum(1))
            weight_sums.append(weights.sum(1))
        return mean(torch.stack(totals).sum(0) / torch.stack(weight_sums).sum(0).clamp(min=TINY))

    def values(self, student: Tensor, teacher: Tensor, level: int) -> Tensor:
        """Returns the distance at every position (N, A P) of logits (N, A, K, P); fills ``self.terms``."""
        raise NotImplementedError

    def _by_class(self, student: Tensor, teacher: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Returns one level's logits of the classes that are compared, (N, A, K, positions)."""
        name = type(self).__name__
        if student.ndim == teacher.ndim >= 2 and self.class_dim == -1:
            # A head that reads texts gives words that are not there -inf.
            student, teacher = (x.movedim(-1, 1).clamp(min=LOWEST) for x in (student, teacher))
        compared = slice(0, 2 if self.shared is None else 1)
        if not student.ndim == teacher.ndim >= 2 or student.shape[compared] != teacher.shape[compared]:
            raise ValueError(
                f'{name}: at level {level} student and teacher should score the same classes with the same '
                f'anchors, but got logits of the shapes {tuple(student.shape)} and {tuple(teacher.shape)}'
            )
        if student.shape[2:] != teacher.shape[2:]:
            if not self.resize or student.ndim != 4:
                raise ValueError(
                    f"{name}: at level {level} the student's logits should be of the teacher's size "
                    f'{tuple(teacher.shape[2:])}, but got {tuple(student.shape[2:])}; resize=True resizes the '
                    "teacher's (N, C, H, W) logits"
                )
            teacher = F.interpolate(full_precision(teacher), student.shape[2:], mode='bilinear', align_corners=False)
        channels = student.shape[1]
        classes = self.classes or channels
        self.check_count(classes, f'level {level}')
        if channels % classes or teacher.shape[1] % (channels // classes):
            raise ValueError(
                f'{name}: the channels of level {level} should be a multiple of num_classes={classes}, but got '
                f'{channels} from the student and {teacher.shape[1]} from the teacher'
            )
        anchors, positions = channels // classes, student.shape[2:].numel()
        student, teacher = (
            full_precision(x).reshape(x.shape[0], anchors, x.shape[1] // anchors, positions) for x in (student, teacher)
        )
        for known in (student.shape[2], teacher.shape[2]):
            if self.background is not None and not -known <= self.background < known:
                raise ValueError(f'background should be in [{-known}, {known - 1}], but got {self.background}')
        if self.shared is None:
            return student, teacher
        # The background comes last if there is one.
        last = [] if self.background is None else [self.background]
        kept = [[*own, *(index % x.shape[2] for index in last)] for own, x in zip(self.shared, (student, teacher))]
        return student[:, :, kept[0]], teacher[:, :, kept[1]]

    def _weights(self, teacher: Tensor) -> Tensor:
        """Returns the teacher's largest class probability (N, A P) of its logits (N, A, K, P)."""
        if self.use_sigmoid:
            return teacher.amax(2).sigmoid().flatten(1)
        normaliser = teacher.logsumexp(2)
        if self.background is not None:
            classes, background = teacher.shape[2], self.background if self.shared is None else -1
            teacher = teacher[:, :, [k for k in range(classes) if k != background % classes]]
        return (teacher.amax(2) - normaliser).exp().flatten(1)


def divergence(student: Tensor, teacher: Tensor, temperature: float, use_sigmoid: bool = False, dim: int = 2) -> Tensor:
    """Returns KL(teacher || student) of logits along ``dim``, which it sums over."""
    student, teacher = student / temperature, teacher / temperature
    if use_sigmoid:
        p = teacher.sigmoid()
        kl = p * (F.logsigmoid(teacher) - F.logsigmoid(student))
        return (kl + (1 - p) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))).sum(dim)
    log_s, log_t = F.log_softmax(student, dim), F.log_softmax(teacher, dim)
    return F.kl_div(log_s, log_t, reduction='none', log_target=True).sum(dim)
