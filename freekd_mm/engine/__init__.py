"""Hooks that are not a method's, and what makes a training reliable."""

from __future__ import annotations

from freekd_mm.engine.checkpoint_hook import SafeCheckpointHook
from freekd_mm.engine.exact import ExactResumeHook
from freekd_mm.engine.nonfinite import NonFiniteHook
from freekd_mm.engine.schedule import DistillScheduleHook
from freekd_mm.engine.signals import GracefulStopHook

__all__ = ['DistillScheduleHook', 'ExactResumeHook', 'GracefulStopHook', 'NonFiniteHook', 'SafeCheckpointHook']
