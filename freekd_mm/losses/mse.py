"""The simplest comparison of feature maps: mean squared difference, level by level."""

from __future__ import annotations

from torch import Tensor

from freekd_mm.losses.base import DistillLoss
from freekd_mm.registry import MODELS
from freekd_mm.tensors import full_precision, mean


@MODELS.register_module()
class FeatureMSELoss(DistillLoss):
    r"""Mean squared difference of the features, summed over the levels.

    .. math:: L = \sum_l \frac{1}{N C_l H_l W_l} \| F^t_l - F^s_l \|_2^2

    FAM-KD compares its adapted features with it (see :class:`freekd_mm.connectors.FAMConnector`), and
    it is the baseline for the losses in the frequency domain.
    """

    part = 'mse'

    def level_loss(self, student: Tensor, teacher: Tensor, level: int) -> Tensor:
        """Returns the mean squared difference of one level."""
        return mean((full_precision(student) - full_precision(teacher)).square())
