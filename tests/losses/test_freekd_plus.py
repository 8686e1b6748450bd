"""FreeKDPlusLoss, the interpretation of FreeKD+."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import dwt2d, idwt2d
from freekd_mm.losses import FreeKDPlusLoss
from freekd_mm.prompts import PromptFile, save_prompt
from freekd_mm.registry import MODELS


def pair(seed=0, size=(16, 12), channels=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=generator) for _ in range(2)]


def prompt(folder, levels=3):
    tokens = torch.randn(1 + levels, 2, 4, generator=torch.Generator().manual_seed(3))
    return str(save_prompt(PromptFile({'neck[0]': tokens}, levels=levels), folder / 'prompt.pth'))


def test_is_its_formula_with_and_without_masks(tmp_path):
    """The low band by values in units of the teacher's square, the high ones by correlation; in value and gradient."""
    student, teacher = (side.double() for side in pair())
    student.requires_grad_()
    for masked in (False, True):
        loss = FreeKDPlusLoss(4, levels=2, min_positions=0, prompt=prompt(tmp_path, 2) if masked else None)
        own, other = dwt2d(student, 2), dwt2d(teacher, 2)
        masks = [loss.masks([side.detach()])[0] for side in (teacher, student)] if masked else None

        def weight(kind, level=None, masks=masks):
            if masks is None:
                return 1.0
            theirs, ours = (m.low if level is None else getattr(m.high[level], kind) for m in masks)
            found = (theirs * (1 + (theirs - ours).abs())).sum(1, keepdim=True)
            return found / found.mean((2, 3), keepdim=True)

        axes = (0, 2, 3)
        gap = (weight('low') * (own.low - other.low).square()).mean(axes)
        wanted = (gap / (weight('low') * other.low.square()).mean(axes)).mean()
        for level in range(2):
            for kind in ('horizontal', 'vertical', 'diagonal'):
                b, a, w = getattr(own.high[level], kind), getattr(other.high[level], kind), weight(kind, level)
                ab, aa, bb = ((w * product).mean(axes) for product in (a * b, a * a, b * b))
                a_scale, b_scale = (1.0001 * aa).sqrt(), (bb + 1e-4 * aa).sqrt()
                distance = bb / b_scale**2 - 2 * ab / (a_scale * b_scale) + aa / a_scale**2
                wanted = wanted + (distance / 2).mean() / 6
        value = loss(student, teacher)
        torch.testing.assert_close(value, wanted)
        gradients = [torch.autograd.grad(each, student)[0] for each in (value, wanted)]
        torch.testing.assert_close(*gradients)


def test_high_bands_are_relaxed_and_the_low_band_is_strong():
    _, teacher = pair()
    bands = dwt2d(teacher, 2)
    tripled = teacher + 2 * idwt2d(bands._replace(low=torch.zeros_like(bands.low)))
    loss = FreeKDPlusLoss(4, levels=2, min_positions=0)
    assert loss(tripled, teacher) < 1e-3, 'the scale of the high bands is free'
    torch.testing.assert_close(loss(3 * teacher, teacher), torch.tensor(4.0), rtol=1e-3, atol=0)
    assert loss(teacher, teacher) < 1e-6


def test_masks_weigh_more_where_the_student_misses_them(tmp_path):
    student, teacher = pair()
    loss = FreeKDPlusLoss(4, prompt=prompt(tmp_path), min_positions=0)
    refined, plain = (loss._position_weights([side], [teacher], [3])[0] for side in (student, teacher))
    (theirs,), (ours,) = loss.masks([teacher]), loss.masks([student])
    misses = (theirs.high[0].diagonal - ours.high[0].diagonal).abs().sum(1)
    gain = refined[0][:, 3] / plain[0][:, 3]
    assert np.corrcoef(misses.flatten(), gain.flatten())[0, 1] > 0.5
    for mask, level in (*zip_equal(refined, (1, 2, 3)), *zip_equal(plain, (1, 2, 3))):
        counted = mask[..., : teacher.shape[2] >> level, : teacher.shape[3] >> level]
        torch.testing.assert_close(counted.mean((2, 3)), torch.ones(2, 4))
        assert not mask.requires_grad


def test_trains_a_student_towards_the_teacher(tmp_path):
    student, teacher = pair()
    loss = MODELS.build(dict(type='freekd_mm.FreeKDPlusLoss', channels=4, prompt=prompt(tmp_path)))
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
