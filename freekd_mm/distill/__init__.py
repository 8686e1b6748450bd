"""The runtime: a student of any config learns from a teacher of any other."""

from freekd_mm.distill.encoder import FeatureEncoder
from freekd_mm.distill.model import DistilledModel, student_state_dict

__all__ = ['DistilledModel', 'FeatureEncoder', 'student_state_dict']
