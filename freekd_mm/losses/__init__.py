"""Distillation losses on tensors or tuples of all levels; they need mmengine alone."""

from freekd_mm.losses.base import DistillLoss
from freekd_mm.losses.dct import DCTAttentionLoss
from freekd_mm.losses.figkd import FiGKDLoss
from freekd_mm.losses.freekd import FreeKDLoss
from freekd_mm.losses.freekd_plus import FreeKDPlusLoss
from freekd_mm.losses.mse import FeatureMSELoss

__all__ = ['DCTAttentionLoss', 'DistillLoss', 'FeatureMSELoss', 'FiGKDLoss', 'FreeKDLoss', 'FreeKDPlusLoss']
