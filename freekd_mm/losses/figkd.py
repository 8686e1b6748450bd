"""FiGKD (arXiv 2505.11897): the high-frequency detail of the logits along the classes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import dwt1d
from freekd_mm.frequency.wavelet import is_haar
from freekd_mm.losses.base import DistillLoss
from freekd_mm.registry import MODELS
from freekd_mm.tensors import full_precision, mean

Part = Literal['detail', 'content', 'both']
Order = Literal['index', 'teacher']
Distance = Literal['mse', 'kl']

# Positions whose teacher probabilities are all 0 in float32 must not divide by 0.
TINY = 1e-12


@MODELS.register_module()
class FiGKDLoss(DistillLoss):
    r"""Distance between the wavelet coefficients of the student's and the teacher's logits along the classes.

    The logits :math:`z \in R^K` of one position (an image, a pixel, an anchor) are a signal of length K. Its
    discrete wavelet transform (boundary ``'zero'``) gives the content, the low band of the last level, and
    the detail, the high bands of all levels together. Per position, with the coefficients :math:`d`:

    * ``distance='mse'``: :math:`\frac{1}{|d|} \sum_i (d^t_i - d^s_i)^2`;
    * ``distance='kl'``: :math:`T^2\, KL(\mathrm{softmax}(d^t / T) \,\|\, \mathrm{softmax}(d^s / T))`.

    The loss is the mean over all positions of all levels; every anchor of a dense head counts the same. With
    ``foreground`` the positions of an image are weighted by the teacher's largest class probability,
    the weights of an image (all levels together) divided by their sum.

    Accepted logits, a tensor or a tuple of levels: (N, K) of a classifier; (N, K, H, W) of a segmenter;
    (N, A K, H, W) of a dense head with A anchors, the classes of one anchor side by side as in mmdet;
    (..., K) of a query-based head with ``class_dim=-1``.

    Args:
        wavelet: A discrete wavelet of PyWavelets.
        levels: Number of levels. An odd number of coefficients is padded with one zero.
        target: ``'detail'``, the method; ``'content'`` or ``'both'`` (the sum of the two) for comparison.
        order: Order of the classes in the signal: ``'index'``, as the head has them (the paper), or
            ``'teacher'``, sorted by the teacher's logits at each position, highest first, which makes
            the loss independent of the arbitrary numbering of the classes.
        distance: ``'mse'`` or ``'kl'``.
        temperature: T of ``'kl'``. The T of ``'mse'`` would cancel.
        num_classes: K, for heads with several anchors; None takes all channels as the classes. Counts the
            background where a softmax head scores it.
        use_sigmoid: The probabilities of ``foreground`` are a sigmoid rather than a softmax of the logits.
        foreground: Weight the positions by the teacher's largest class probability.
        background: Index of the background among the classes of a softmax head (-1 in mmdet), which
            ``foreground`` then leaves out; None where no class is the background.
        class_dim: 1 or -1, the axis of the classes.
        resize: Resize the teacher's (N, C, H, W) logits bilinearly to the student's size. Where it is off,
            other sizes are an error.
        loss_weight: Factor on the returned value.
    """

    target = 'logits'

    def __init__(
        self,
        wavelet: str = 'haar',
        levels: int = 1,
        target: Part = 'detail',
        order: Order = 'index',
        distance: Distance = 'mse',
        temperature: float = 1.0,
        num_classes: int | None = None,
        use_sigmoid: bool = False,
        foreground: bool = False,
        background: int | None = None,
        class_dim: int = 1,
        resize: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        is_haar(wavelet)  # raises where there is no such wavelet
        check_positive('levels', levels, integer=True)
        check_choice('target', target, ('detail', 'content', 'both'))
        check_choice('order', order, ('index', 'teacher'))
        check_choice('distance', distance, ('mse', 'kl'))
        check_positive('temperature', temperature)
        check_choice('class_dim', class_dim, (1, -1))
        if num_classes is not None:
            check_positive('num_classes', num_classes, integer=True)
            self._check_classes(num_classes, 'num_classes')
        if background is not None and use_sigmoid:
            raise ValueError('background should be None with use_sigmoid=True: a sigmoid head scores no background')
        self.wavelet, self.levels, self.part, self.order = wavelet, levels, target, order
        # Not called num_classes: mmdet's NumClassCheckHook compares every such attribute with the data set.
        self.distance, self.temperature, self.classes = distance, temperature, num_classes
        self.use_sigmoid, self.foreground, self.background = use_sigmoid, foreground, background
        self.class_dim, self.resize = class_dim, resize

    def _check_classes(self, classes: int, where: str) -> None:
        if classes < 2:
            raise ValueError(
                f'{type(self).__name__}: {where} should hold at least 2 classes, but got {classes}: the logits of '
                'one class have no detail along the classes. Distil the features instead'
            )

    def compute(self, students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> Tensor:
        """Returns the mean over all positions; ``terms['level0/detail']`` holds each level's own mean."""
        totals, weight_sums = [], []
        for level, (student, teacher) in enumerate(zip_equal(students, teachers)):
            student, teacher = self._by_class(student, teacher, level)
            values = self._values(student, teacher, level)
            weights = self._weights(teacher) if self.foreground else torch.ones_like(values)
            totals.append((weights * values).sum(1))
            weight_sums.append(weights.sum(1))
        return mean(torch.stack(totals).sum(0) / torch.stack(weight_sums).sum(0).clamp(min=TINY))

    def _by_class(self, student: Tensor, teacher: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Returns views (N, A, K, positions) of one level's logits."""
        name = type(self).__name__
        same = student.ndim == teacher.ndim >= 2
        if same and self.class_dim == -1:
            student, teacher = student.movedim(-1, 1), teacher.movedim(-1, 1)
        if not same or student.shape[:2] != teacher.shape[:2]:
            raise ValueError(
                f'{name}: at level {level} student and teacher should score the same classes with the same '
                f'anchors, but got logits of the shapes {tuple(student.shape)} and {tuple(teacher.shape)}'
            )
        if student.shape != teacher.shape:
            if not self.resize or student.ndim != 4:
                raise ValueError(
                    f"{name}: at level {level} the student's logits should be of the teacher's size "
                    f'{tuple(teacher.shape[2:])}, but got {tuple(student.shape[2:])}; resize=True resizes the '
                    "teacher's (N, C, H, W) logits"
                )
            teacher = F.interpolate(full_precision(teacher), student.shape[2:], mode='bilinear', align_corners=False)
        channels = student.shape[1]
        classes = self.classes or channels
        self._check_classes(classes, f'level {level}')
        if channels % classes:
            raise ValueError(
                f'{name}: the channels of level {level} should be a multiple of num_classes={classes}, '
                f'but got {channels}'
            )
        shape = (student.shape[0], channels // classes, classes, student.shape[2:].numel())
        return full_precision(student).reshape(shape), full_precision(teacher).reshape(shape)

    def _values(self, student: Tensor, teacher: Tensor, level: int) -> Tensor:
        """Returns the distance at every position (N, A P) of logits (N, A, K, P)."""
        # The transform is linear: for 'mse' one of the difference does for both.
        inputs = [student - teacher] if self.distance == 'mse' else [student, teacher]
        if self.order == 'teacher':
            index = teacher.argsort(dim=2, descending=True, stable=True)
            inputs = [logits.gather(2, index) for logits in inputs]
        bands = [dwt1d(logits, self.levels, self.wavelet, dim=2) for logits in inputs]
        values = []
        for part in ('detail', 'content') if self.part == 'both' else (self.part,):
            coefficients = [list(band.high) if part == 'detail' else [band.low] for band in bands]
            value = self._mse(coefficients[0]) if self.distance == 'mse' else self._kl(*coefficients)
            self.terms[f'level{level}/{part}'] = mean(value).detach()
            values.append(value.flatten(1))
        return sum(values[1:], values[0])

    def _mse(self, differences: list[Tensor]) -> Tensor:
        """Returns the mean over all coefficients (N, A, P) of the bands (N, A, k, P)."""
        sums = [band.square().sum(2) for band in differences]
        return sum(sums[1:], sums[0]) / sum(band.shape[2] for band in differences)

    def _kl(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Returns the KL divergence (N, A, P) of the teacher's and the student's bands (N, A, k, P)."""
        count = sum(band.shape[2] for band in student)
        if count < 2:
            raise ValueError(
                f"{type(self).__name__}: distance='kl' should have at least 2 coefficients, but got {count}: the "
                "softmax of one is always 1. Use distance='mse' or more levels"
            )
        log_s = F.log_softmax(torch.cat(student, 2) / self.temperature, 2)
        log_t = F.log_softmax(torch.cat(teacher, 2) / self.temperature, 2)
        return self.temperature**2 * F.kl_div(log_s, log_t, reduction='none', log_target=True).sum(2)

    def _weights(self, teacher: Tensor) -> Tensor:
        """Returns the teacher's largest class probability (N, A P) of its logits (N, A, K, P)."""
        if self.use_sigmoid:
            return teacher.amax(2).sigmoid().flatten(1)
        normaliser = teacher.logsumexp(2)
        if self.background is not None:
            classes = teacher.shape[2]
            if not -classes <= self.background < classes:
                raise ValueError(f'background should be in [{-classes}, {classes - 1}], but got {self.background}')
            kept = [k for k in range(classes) if k != self.background % classes]
            teacher = teacher[:, :, kept]
        return (teacher.amax(2) - normaliser).exp().flatten(1)
