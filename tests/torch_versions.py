"""What PyTorch itself cannot do in its older versions, so that a test of it says so and is skipped."""

from __future__ import annotations

import pytest
import torch

from freekd_mm.compat.versions import torch_at_least


def newer_torch(what: str, first: tuple[int, int] = (2, 2)) -> pytest.MarkDecorator:
    """Marks a test, or a parameter, that needs more than the PyTorch 2.1 of the matrix, or at least ``first``."""
    reason = f'PyTorch older than {first[0]}.{first[1]} has no {what}'
    return pytest.mark.skipif(not torch_at_least(*first), reason=reason)


#: The types of autocast.
HALF = [pytest.param(torch.float16, marks=newer_torch('autocast to float16 on the CPU')), torch.bfloat16]
