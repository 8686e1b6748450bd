"""Connectors and losses in mmrazor's own ConfigurableDistiller, wired by its configs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip('mmrazor')


class Pyramid(nn.Module):
    """Two levels in one tuple, as the necks of mmdet have them."""

    def __init__(self, channels):
        super().__init__()
        self.fine = nn.Conv2d(3, channels, 3, padding=1)
        self.coarse = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, image):
        fine = self.fine(image)
        return fine, self.coarse(fine)


class Detector(nn.Module):
    """A neck and scores of 2 anchors x 5 classes."""

    def __init__(self, channels):
        super().__init__()
        self.neck = Pyramid(channels)
        self.head = nn.Conv2d(channels, 10, 1)

    def forward(self, image):
        return tuple(self.head(level) for level in self.neck(image))


def build_distiller(connector, losses, mappings):
    from mmrazor.registry import MODELS

    recorders = {
        'neck': {'type': 'ModuleOutputs', 'source': 'neck'},
        'head': {'type': 'ModuleOutputs', 'source': 'head'},
    }
    return MODELS.build(
        {
            'type': 'ConfigurableDistiller',
            'student_recorders': recorders,
            'teacher_recorders': recorders,
            'connectors': {'adapt': connector},
            'distill_losses': losses,
            'loss_forward_mappings': mappings,
        }
    )


@pytest.mark.parametrize('connector', ['FAMConnector', 'FAMReviewConnector'])
def test_in_an_mmrazor_config(connector):
    levels = {'recorder': 'neck', 'from_student': True, 'connector': 'adapt'}
    distiller = build_distiller(
        {'type': f'freekd_mm.{connector}', 'in_channels': 4, 'out_channels': 8, 'num_levels': 2, 'rank': 2},
        {
            'loss_fam': {'type': 'freekd_mm.FeatureMSELoss', 'loss_weight': 2.0},
            'loss_dct': {'type': 'freekd_mm.DCTAttentionLoss'},
            'loss_figkd': {'type': 'freekd_mm.FiGKDLoss', 'num_classes': 5, 'use_sigmoid': True},
        },
        {
            'loss_fam': {'preds_S': levels, 'preds_T': {'recorder': 'neck', 'from_student': False}},
            'loss_dct': {
                'preds_S': {'recorder': 'neck', 'from_student': True},
                'preds_T': {'recorder': 'neck', 'from_student': False},
            },
            'loss_figkd': {
                'preds_S': {'recorder': 'head', 'from_student': True},
                'preds_T': {'recorder': 'head', 'from_student': False},
            },
        },
    )
    student, teacher = Detector(4), Detector(8)
    distiller.prepare_from_student(student)
    distiller.prepare_from_teacher(teacher)
    image = torch.randn(2, 3, 9, 8)
    with torch.no_grad(), distiller.teacher_recorders:
        teacher(image)
    with distiller.student_recorders:
        student(image)
    losses = distiller.compute_distill_losses()
    assert set(losses) == {'loss_fam', 'loss_dct', 'loss_figkd'}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is not None for parameter in distiller.connectors.parameters())
    assert not any(name.startswith(('connectors', 'distill')) for name in student.state_dict())
