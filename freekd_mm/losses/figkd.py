"""FiGKD (arXiv 2505.11897): the high-frequency detail of the logits along the classes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.frequency import dwt1d
from freekd_mm.frequency.wavelet import is_haar
from freekd_mm.losses.classes import ClassLoss, divergence
from freekd_mm.registry import MODELS
from freekd_mm.tensors import mean

Part = Literal['detail', 'content', 'both']
Order = Literal['index', 'teacher']
Distance = Literal['mse', 'kl']
Normalize = Literal['none', 'center', 'standard']

# Logits that are all the same at a position must not divide by 0.
EPS = 1e-6


@MODELS.register_module()
class FiGKDLoss(ClassLoss):
    r"""Distance between the wavelet coefficients of the student's and the teacher's logits along the classes.

    The logits :math:`z \in R^K` of one position (an image, a pixel, an anchor) are a signal of length K. Its
    discrete wavelet transform (boundary ``'zero'``) gives the content, the low band of the last level, and
    the detail, the high bands of all levels together. Per position, with the coefficients :math:`d`:

    * ``distance='mse'``: :math:`\frac{1}{|d|} \sum_i (d^t_i - d^s_i)^2`;
    * ``distance='kl'``: :math:`T^2\, KL(\mathrm{softmax}(d^t / T) \,\|\, \mathrm{softmax}(d^s / T))`.

    The loss is the mean over all positions, see :class:`freekd_mm.losses.classes.ClassLoss`, which also says
    which logits are accepted.

    Args:
        wavelet: A discrete wavelet of PyWavelets.
        levels: Number of levels. An odd number of coefficients is padded with one zero.
        target: ``'detail'``, the method; ``'content'`` or ``'both'`` (the sum of the two) for comparison.
        order: Order of the classes in the signal: ``'index'``, as in the head (the paper), or
            ``'teacher'``, sorted by the teacher's logits at each position, highest first, which makes
            the loss independent of the arbitrary numbering of the classes.
        distance: ``'mse'`` or ``'kl'``.
        normalize: ``'center'`` subtracts the mean of a position's logits before the transform of the detail, so that
            the zeros after the last class mean the mean: with an odd K the last class is compared with the mean, not
            as a raw logit. ``'standard'`` also divides by their deviation. ``'none'`` keeps the raw logits.
        temperature: T of ``'kl'``. The T of ``'mse'`` would cancel.
        **scores: Options of :class:`freekd_mm.losses.classes.ClassLoss`: ``num_classes``, ``use_sigmoid``,
            ``foreground``, ``background``, ``class_dim``, ``resize``, ``loss_weight``.
    """

    alone = 'the logits of one class have no detail along the classes'

    def __init__(
        self,
        wavelet: str = 'haar',
        levels: int = 1,
        target: Part = 'detail',
        order: Order = 'index',
        distance: Distance = 'mse',
        normalize: Normalize = 'center',
        temperature: float = 1.0,
        **scores: Any,
    ) -> None:
        super().__init__(**scores)
        is_haar(wavelet)  # raises where there is no such wavelet
        check_positive('levels', levels, integer=True)
        check_choice('target', target, ('detail', 'content', 'both'))
        check_choice('order', order, ('index', 'teacher'))
        check_choice('distance', distance, ('mse', 'kl'))
        check_choice('normalize', normalize, ('none', 'center', 'standard'))
        check_positive('temperature', temperature)
        self.wavelet, self.levels, self.part, self.order = wavelet, levels, target, order
        self.distance, self.normalize, self.temperature = distance, normalize, temperature

    def values(self, student: Tensor, teacher: Tensor, level: int) -> Tensor:
        """Returns the distance at every position (N, A P) of logits (N, A, K, P)."""
        index = teacher.argsort(dim=2, descending=True, stable=True) if self.order == 'teacher' else None
        values = []
        for part in ('detail', 'content') if self.part == 'both' else (self.part,):
            inputs = [self._normalised(logits, part) for logits in (student, teacher)]
            # The transform is linear: for 'mse' one of the difference is enough.
            inputs = [inputs[0] - inputs[1]] if self.distance == 'mse' else inputs
            inputs = inputs if index is None else [logits.gather(2, index) for logits in inputs]
            bands = [dwt1d(logits, self.levels, self.wavelet, dim=2) for logits in inputs]
            coefficients = [torch.cat(band.high, 2) if part == 'detail' else band.low for band in bands]
            value = self._distance(*coefficients)
            self.terms[f'level{level}/{part}'] = mean(value).detach()
            values.append(value.flatten(1))
        return sum(values[1:], values[0])

    def _normalised(self, logits: Tensor, part: str) -> Tensor:
        if self.normalize == 'none' or (self.normalize == 'center' and part == 'content'):
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
