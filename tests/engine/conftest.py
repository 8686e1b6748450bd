"""Fixtures for the tests of training runs."""

from __future__ import annotations

import os
import time

import pytest


@pytest.fixture
def quick_disk(monkeypatch):
    """No waiting for the disk, nor for mmengine, which sleeps between passes."""
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)
    sleep = time.sleep
    monkeypatch.setattr(time, 'sleep', lambda seconds: sleep(min(seconds, 0.05)))
