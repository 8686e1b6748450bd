"""Distillation losses on tensors or tuples of all levels; they need only mmengine."""

from __future__ import annotations

from freekd_mm.losses.base import DistillLoss
from freekd_mm.losses.dct_attention import DCTAttentionLoss
from freekd_mm.losses.figkd import FiGKDLoss
from freekd_mm.losses.freekd import FreeKDLoss, FreeKDPlusLoss
from freekd_mm.losses.heads import CrossKDLoss, LDLoss
from freekd_mm.losses.logit_kl import LogitKLLoss
from freekd_mm.losses.mse import FeatureMSELoss
from freekd_mm.losses.wavelet import WaveletLoss

__all__ = [
    'CrossKDLoss',
    'DCTAttentionLoss',
    'DistillLoss',
    'FeatureMSELoss',
    'FiGKDLoss',
    'FreeKDLoss',
    'FreeKDPlusLoss',
    'LDLoss',
    'LogitKLLoss',
    'WaveletLoss',
]
