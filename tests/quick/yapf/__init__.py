"""Stands in for yapf in the tests and in the processes that they start: mmengine formats a config ten times a run."""

from __future__ import annotations

__version__ = '0.40.2'
