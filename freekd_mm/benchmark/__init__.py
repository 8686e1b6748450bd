"""Compares methods on one student, one teacher and one data set: same data order, schedule and seeds."""

from __future__ import annotations

from freekd_mm.benchmark.plan import Method, Plan, load_plan

__all__ = ['Method', 'Plan', 'load_plan']
