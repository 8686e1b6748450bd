"""Adapters between the student's features and the losses; they belong to the distillation, never to the student."""

from __future__ import annotations

from freekd_mm.connectors.fam import FAM, FAMConnector
from freekd_mm.connectors.review import FAMReviewConnector, LocalCrossAttention

__all__ = ['FAM', 'FAMConnector', 'FAMReviewConnector', 'LocalCrossAttention']
