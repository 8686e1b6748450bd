"""The runtime: a student of any config learns from a teacher of any other."""

from __future__ import annotations

from freekd_mm.runtime.encoder import FeatureEncoder
from freekd_mm.runtime.model import DistilledModel, student_state_dict

__all__ = ['DistilledModel', 'FeatureEncoder', 'student_state_dict']
