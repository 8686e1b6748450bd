"""A fixture for the real models of the shipped configs."""

from __future__ import annotations

import pytest
from mmdet.models import RPNHead


@pytest.fixture(autouse=True)
def _few_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random RPN proposes a thousand boxes, and a cascade has three mask heads for each."""
    all_of_them = RPNHead._bbox_post_process
    monkeypatch.setattr(RPNHead, '_bbox_post_process', lambda *args, **options: all_of_them(*args, **options)[:8])
