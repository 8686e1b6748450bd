"""Hinton's distillation: the divergence of the class probabilities of student and teacher."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from freekd_mm.checks import check_positive
from freekd_mm.losses.classes import ClassLoss, divergence
from freekd_mm.registry import MODELS
from freekd_mm.tensors import mean


@MODELS.register_module()
class LogitKLLoss(ClassLoss):
    r"""Kullback-Leibler divergence of the teacher's class probabilities from the student's, with a temperature.

    Per position (an image, a pixel, an anchor), with the logits z of K classes:

    * softmax: :math:`T^2 \sum_k p^t_k \log (p^t_k / p^s_k)`, :math:`p = \mathrm{softmax}(z / T)`;
    * ``use_sigmoid``: :math:`T^2 \sum_k KL(p^t_k \,\|\, p^s_k)` of yes or no, :math:`p = \mathrm{sigmoid}(z / T)`.

    The loss is the mean over all positions, see :class:`freekd_mm.losses.classes.ClassLoss`, which also says
    which logits are accepted. If student and teacher share only some classes, the softmax is over those.

    Args:
        temperature: T; a high one also compares unlikely classes.
        **scores: Options of :class:`freekd_mm.losses.classes.ClassLoss`: ``num_classes``, ``use_sigmoid``,
            ``foreground``, ``background``, ``class_dim``, ``resize``, ``loss_weight``.
    """

    alone = 'the softmax of one is always 1'

    def __init__(self, temperature: float = 1.0, **scores: Any) -> None:
        super().__init__(**scores)
        check_positive('temperature', temperature)
        self.temperature = temperature

    def check_count(self, classes: int, where: str) -> None:
        """Raises ValueError if there are too few classes: a sigmoid needs only one."""
        if not self.use_sigmoid:
            super().check_count(classes, where)

    def values(self, student: Tensor, teacher: Tensor, level: int) -> Tensor:
        """Returns the divergence at every position (N, A P) of logits (N, A, K, P)."""
        value = self.temperature**2 * divergence(student, teacher, self.temperature, self.use_sigmoid)
        self.terms[f'level{level}/kl'] = mean(value).detach()
        return value.flatten(1)
