"""FeatureMSELoss against torch's own mean squared error."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from freekd_mm.compat.versions import zip_equal
from freekd_mm.losses import FeatureMSELoss


def test_is_the_sum_over_the_levels():
    students = [torch.randn(2, 3, size, size, requires_grad=True) for size in (5, 2)]
    teachers = [torch.randn(2, 3, size, size) for size in (5, 2)]
    loss = FeatureMSELoss(loss_weight=4.0)
    value = loss(students, teachers)
    parts = [F.mse_loss(s, t) for s, t in zip_equal(students, teachers)]
    torch.testing.assert_close(value, 4 * (parts[0] + parts[1]))
    torch.testing.assert_close(loss.terms, {f'level{level}/mse': part.detach() for level, part in enumerate(parts)})


def test_half_precision_does_not_overflow():
    loss = FeatureMSELoss()(torch.full((1, 1, 2, 2), 1000.0).half(), torch.zeros(1, 1, 2, 2).half())
    assert loss.item() == pytest.approx(1e6)


def test_empty_batch():
    student = torch.zeros(0, 3, 2, 2, requires_grad=True)
    loss = FeatureMSELoss()(student, torch.zeros(0, 3, 2, 2))
    loss.backward()
    assert loss.item() == 0


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"level 1 .* teacher's shape \(1, 4, 2, 2\), but got \(1, 3, 2, 2\)"):
        FeatureMSELoss()(
            [torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 2, 2)], [torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)]
        )
