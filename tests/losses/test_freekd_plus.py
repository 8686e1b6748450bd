"""FreeKDPlusLoss, the interpretation of FreeKD+."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from freekd_mm.losses import FreeKDPlusLoss
from freekd_mm.losses.freekd.plus import masked_correlation
from freekd_mm.prompts import PromptFile, save_prompt
from freekd_mm.registry import MODELS


def pair(seed=0, size=(16, 12), channels=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=generator) for _ in range(2)]


def prompt(folder):
    tokens = {0: torch.randn(4, 2, 4, generator=torch.Generator().manual_seed(3))}
    return str(save_prompt(PromptFile({'neck': tokens}), folder / 'prompt.pth'))


def test_correlation_is_numpys_with_even_and_with_uneven_weights():
    student, teacher = pair()
    correlation, says_something = masked_correlation(student, teacher, torch.ones(1, 1, 16, 12))
    assert says_something.all()
    for n in range(2):
        for c in range(4):
            wanted = np.corrcoef(student[n, c].flatten(), teacher[n, c].flatten())[0, 1]
            assert correlation[n, c].item() == pytest.approx(wanted, abs=1e-3)
    weight = torch.rand(2, 1, 16, 12)
    correlation, _ = masked_correlation(student, teacher, weight)
    covariance = np.cov(student[1, 2].flatten(), teacher[1, 2].flatten(), aweights=weight[1, 0].flatten())
    wanted = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert correlation[1, 2].item() == pytest.approx(wanted, abs=1e-3)


def test_high_bands_are_relaxed_and_the_low_band_is_strong():
    _, teacher = pair()
    loss = FreeKDPlusLoss(4, relation=None)
    loss(teacher * 3, teacher)
    assert loss.terms['level0/high'] < 1e-3, 'the scale of the high bands is free'
    assert loss.terms['level0/low'] > 1, 'that of the low band is not'
    loss(teacher, teacher)
    assert sum(loss.terms.values()) < 1e-3


def test_gradients_agree_with_finite_differences(tmp_path):
    student, teacher = (side.double() for side in pair(size=(6, 5)))
    loss = FreeKDPlusLoss(4, prompt=prompt(tmp_path), refine=False).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), (student.requires_grad_(),), atol=1e-5)


def test_masks_weigh_more_where_the_student_misses_them(tmp_path):
    student, teacher = pair()
    loss = FreeKDPlusLoss(4, prompt=prompt(tmp_path))
    (refined,) = loss.level_masks([student], [teacher])
    (plain,) = loss.masks([teacher])
    (own,) = loss.masks([student])
    torch.testing.assert_close(refined.low, plain.low * (1 + (plain.low - own.low).abs()))
    (same,) = loss.level_masks([teacher], [teacher])
    torch.testing.assert_close(same.high[1].diagonal, plain.high[1].diagonal)
    assert not refined.low.requires_grad


def test_trains_a_student_towards_the_teacher(tmp_path):
    student, teacher = pair()
    loss = MODELS.build(dict(type='freekd_mm.FreeKDPlusLoss', channels=4, prompt=prompt(tmp_path), relation='free'))
    student.requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.05)
    start = loss(student, teacher).item()
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(student, teacher)
        value.backward()
        optimizer.step()
    assert value.item() < 0.3 * start


@pytest.mark.parametrize('teacher', [torch.zeros(2, 4, 5, 5), torch.ones(2, 4, 1, 1)])
def test_constant_and_tiny_features_are_finite(teacher):
    student = torch.randn_like(teacher).requires_grad_()
    value = FreeKDPlusLoss(4)(student, teacher)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
