"""FiGKD (arXiv 2505.11897): the high-frequency detail of the logits along the classes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.frequency import dwt1d
from freekd_mm.losses.classes import ClassLoss, divergence
from freekd_mm.registry import MODELS
from freekd_mm.tensors import mean

Order = Literal['index', 'teacher']
Distance = Literal['mse', 'kl']
Normalize = Literal['none', 'center', 'standard']

# Logits that are all the same at a position must not divide by 0.
EPS = 1e-6


@MODELS.register_module()
class FiGKDLoss(ClassLoss):
    r"""Distance between the wavelet coefficients of the student's and the teacher's logits along the classes.

    The logits :math:`z \in R^K` of one position (an image, a pixel, an anchor) are a signal of length K. The high bands
    of its Haar transform (boundary ``'zero'``), of all levels together, are its detail. Per position, with the
    coefficients :math:`d`:

    * ``distance='mse'``: :math:`\frac{1}{|d|} \sum_i (d^t_i - d^s_i)^2`;
    * ``distance='kl'``: :math:`T^2\, KL(\mathrm{softmax}(d^t / T) \,\|\, \mathrm{softmax}(d^s / T))`.

    The loss is the mean over all positions, see :class:`freekd_mm.losses.classes.ClassLoss`, which also says
    which logits are accepted.

    Args:
        levels: Number of levels. An odd number of coefficients is padded with one zero.
        order: Order of the classes in the signal: ``'index'``, as in the head (the paper), or
            ``'teacher'``, sorted by the teacher's logits at each position, highest first, which makes
            the loss independent of the arbitrary numbering of the classes.
        distance: ``'mse'`` or ``'kl'``.
        normalize: ``'center'`` subtracts the mean of a position's logits before the transform, so that the zeros
            after the last class mean the mean: with an odd K the last class is compared with the mean, not
            as a raw logit. ``'standard'`` also divides by their deviation. ``'none'`` keeps the raw logits.
        temperature: T of ``'kl'``. The T of ``'mse'`` would cancel.
        **scores: Options of :class:`freekd_mm.losses.classes.ClassLoss`: ``num_classes``, ``use_sigmoid``,
            ``foreground``, ``background``, ``class_dim``, ``resize``, ``loss_weight``.
    """

    alone = 'the logits of one class have no detail along the classes'

    def __init__(
        self,
        levels: int = 1,
        order: Order = 'index',
        distance: Distance = 'mse',
        normalize: Normalize = 'center',
        temperature: float = 1.0,
        **scores: Any,
    ) -> None:
        super().__init__(**scores)
        check_positive('levels', levels, integer=True)
        check_choice('order', order, ('index', 'teacher'))
        check_choice('distance', distance, ('mse', 'kl'))
        check_choice('normalize', normalize, ('none', 'center', 'standard'))
        check_positive('temperature', temperature)
        self.levels, self.order, self.distance = levels, order, distance
        self.normalize, self.temperature = normalize, temperature

    def values(self, student: Tensor, teacher: Tensor, level: int) -> Tensor:
        """Returns the distance at every position (N, A P) of logits (N, A, K, P)."""
        inputs = [self._normalised(logits) for logits in (student, teacher)]
        # The transform is linear: for 'mse' one of the difference is enough.
        inputs = [inputs[0] - inputs[1]] if self.distance == 'mse' else inputs
        if self.order == 'teacher':
            index = teacher.argsort(dim=2, descending=True, stable=True)
            inputs = [logits.gather(2, index) for logits in inputs]
        details = (dwt1d(logits, self.levels, dim=2)[1] for logits in inputs)
        value = self._distance(*(torch.cat(detail, 2) for detail in details))
        self.terms[f'level{level}/detail'] = mean(value).detach()
        return value.flatten(1)

    def _normalised(self, logits: Tensor) -> Tensor:
        if self.normalize == 'none':
            return logits
        logits = logits - logits.mean(2, keepdim=True)
        if self.normalize == 'center':
            return logits
        return logits * (logits.square().mean(2, keepdim=True) + EPS).rsqrt()

    def _distance(self, first: Tensor, teacher: Tensor | None = None) -> Tensor:
        """Returns (N, A, P) for coefficients (N, A, k, P): of the difference alone, or of student and teacher."""
        if teacher is None:
            return first.square().mean(2)
        if first.shape[2] < 2:
            raise ValueError(
                f"{type(self).__name__}: distance='kl' should have at least 2 coefficients, but got {first.shape[2]}: "
                "the softmax of one is always 1. Use distance='mse' or more levels"
            )
        return self.temperature**2 * divergence(first, teacher, self.temperature)
