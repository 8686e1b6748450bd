"""The crossing of CrossKD: the teacher's frozen head on the student's features, for the heads of four detectors."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_configs
import torch
from distill_cases import build, det_samples, distilled, images, total
from torch import nn

from freekd_mm.runtime.compatibility import check_boxes
from freekd_mm.runtime.taps import Tap

GFL = tiny_configs.detector(Path('.'), head='gfl')['model']['bbox_head']
RETINA = tiny_configs.detector(Path('.'))['model']['bbox_head']
LOSS = {'type': 'GIoULoss', 'loss_weight': 2.0}
ANCHOR_FREE = {key: GFL[key] for key in ('num_classes', 'in_channels', 'feat_channels', 'norm_cfg')}
RANGES = ((-1, 32), (32, 64), (64, 1e8))
HEADS: dict[str, Any] = {
    'GFL': (GFL, 'distribution'),
    'RetinaNet': (RETINA, 'deltas'),
    'FCOS': (
        {**ANCHOR_FREE, 'type': 'FCOSHead', 'strides': [8, 16, 32], 'regress_ranges': RANGES, 'norm_on_bbox': True},
        'distances',
    ),
    'ATSS': ({**RETINA, 'type': 'ATSSHead', 'loss_bbox': LOSS}, 'deltas'),
}
#: The last layers of each head: scores and boxes of a level.
LAST = {'GFL': 'gfl', 'RetinaNet': 'retina', 'FCOS': 'conv', 'ATSS': 'atss'}


def detector(kind: str, width: int = 8, channels: int = 16) -> dict:
    """Three layers in each tower."""
    model = copy.deepcopy(tiny_configs.detector(Path('.'), width=width, channels=channels)['model'])
    head = {**HEADS[kind][0], 'stacked_convs': 3, 'in_channels': channels, 'feat_channels': channels}
    return {**model, 'type': kind, 'bbox_head': head, '_scope_': 'mmdet'}


def entry(kind: str, layer: int = 2) -> dict:
    """CrossKD behind ``layer`` layers of the student's towers."""
    return {
        'student': [f'bbox_head.cls_convs.{layer - 1}', f'bbox_head.reg_convs.{layer - 1}'],
        'teacher': ['bbox_head[0]', 'bbox_head[1]'],
        'through': {'start': layer},
        'loss': {'type': 'freekd_mm.CrossKDLoss', 'boxes': HEADS[kind][1]},
    }


def student(kind: str, teacher: dict | None = None, seed: int = 0, dtype: str = 'fp32') -> Any:
    """A student that learns from a random teacher of its kind by CrossKD."""
    torch.manual_seed(seed)
    source = {'model': teacher or detector(kind, 16, 24), 'allow_random': True, 'dtype': dtype}
    model = build(distilled({'model': detector(kind)}, source, {'cross': entry(kind)})['model'])
    for module in (model, model.teacher):
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    return model


def crossed(model: Any, batch: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
    """The cross predictions, the teacher's, and the student's features that they come from."""
    distillation = model.distillation
    distillation.teacher.run(batch, det_samples(len(batch)))
    with distillation.student_recorder:
        model(batch, det_samples(len(batch)), mode='tensor')
    cross = distillation.entry('cross')
    levels = distillation.student_recorder.levels(cross.student_taps)
    found = cross.through(levels), distillation.teacher.levels(cross.teacher_taps), levels
    distillation.clear()
    return found


@pytest.mark.parametrize('kind', HEADS)
def test_a_student_that_is_the_teacher_gets_the_teachers_predictions(kind: str) -> None:
    model = student(kind, teacher=detector(kind))
    model.load_state_dict(model.teacher.state_dict(), strict=False)
    model.eval()
    ours, theirs, _ = crossed(model, images())
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    for own, other in zip(ours, theirs):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', HEADS)
def test_it_is_the_rest_of_the_teachers_head(kind: str) -> None:
    """Layer by layer, from the formula; projected, as the widths differ, with the teacher's mean and deviation."""
    model = student(kind).eval()
    ours, _, levels = crossed(model, images())
    head, projections = model.teacher.bbox_head, model.distillation.entry('cross').through.projections
    distillation = model.distillation
    distillation.teacher.run(images(), det_samples())
    taps = [Tap('bbox_head.cls_convs.1'), Tap('bbox_head.reg_convs.1')]

    def like(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        axes = dict(dim=(0, 2, 3), keepdim=True)
        (mean_s, mean_t), (var_s, var_t) = (
            [x.mean(**axes) for x in (own, other)],
            [x.var(unbiased=False, **axes) + 1e-6 for x in (own, other)],
        )
        return ((own - mean_s) * (var_t / var_s).sqrt() + mean_t).relu()

    for level, others in enumerate(zip(*(distillation.teacher.levels([tap]) for tap in taps))):
        scores = head.cls_convs[2](like(projections[0](levels[level]), others[0]))
        boxes = head.reg_convs[2](like(projections[1](levels[3 + level]), others[1]))
        last = LAST[kind]
        boxes = getattr(head, f'{last}_reg')(boxes)
        boxes = boxes if kind == 'RetinaNet' else head.scales[level](boxes)
        boxes = boxes.clamp(min=0) * head.strides[level] if kind == 'FCOS' else boxes
        torch.testing.assert_close(ours[level], getattr(head, f'{last}_cls')(scores), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours[3 + level], boxes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', HEADS)
def test_the_gradient_goes_through_the_teacher_to_the_students_first_layers_alone(kind: str) -> None:
    model = student(kind)
    before = copy.deepcopy(model.teacher.state_dict())
    losses = model.loss(images(), det_samples())
    losses['distill.loss_cross'].backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {
        'backbone.conv1.weight',
        'bbox_head.cls_convs.0.conv.weight',
        'bbox_head.reg_convs.1.conv.weight',
    } <= touched
    assert 'distillation.entries.cross.through.projections.0.weight' in touched
    assert not any(name.startswith(('bbox_head.cls_convs.2', f'bbox_head.{LAST[kind]}_')) for name in touched)
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.teacher.state_dict().items())
    assert len(model.teacher.bbox_head.cls_convs) == 3
    assert not any('teacher' in name for name in model.state_dict())


def test_widths_that_agree_need_no_projection() -> None:
    model = student('GFL', teacher=detector('GFL'))
    assert not list(model.distillation.parameters())


def test_a_copy_shares_the_teacher() -> None:
    model = student('GFL')
    double = copy.deepcopy(model)
    assert double.teacher is model.teacher
    assert double.distillation.entry('cross').through.teacher is model.distillation.teacher
    total(double.loss(images(), det_samples())).backward()
    assert model.bbox_head.cls_convs[0].conv.weight.grad is None


def test_a_teacher_in_half_precision() -> None:
    values = [
        student('RetinaNet', dtype=dtype).loss(images(), det_samples())['distill.loss_cross'].item()
        for dtype in ('fp32', 'bf16')
    ]
    assert values[0] == pytest.approx(values[1], rel=0.1)


def test_a_student_with_another_head() -> None:
    """Boxes are those of the teacher's head, whatever the student's own."""
    model = build(
        distilled(
            {'model': detector('RetinaNet')},
            {'model': detector('GFL', 16, 24), 'allow_random': True},
            {'cross': entry('GFL')},
        )['model']
    )
    assert model.loss(images(), det_samples())['distill.loss_cross'] > 0
    rows = model.distillation.entry('cross').rows
    assert rows[0][-1] == "through the teacher's bbox_head from layer 2"


@pytest.mark.parametrize(
    ('through', 'message'),
    [
        ({}, "start of through of distill 'cross' should be an integer, but got None"),
        ({'start': 0}, "start of through of distill 'cross' should be greater than 0, but got 0"),
        ({'start': 9}, "'bbox_head.cls_convs' has no '8'; available: 0, 1, 2"),
        ({'strat': 1}, "through of distill 'cross' has no option 'strat'.*Did you mean 'start'"),
    ],
)
def test_wrong_options(through: dict, message: str) -> None:
    distill = {'cross': {**entry('GFL'), 'through': through}}
    with pytest.raises((ValueError, TypeError), match=message):
        build(distilled({'model': detector('GFL')}, {'model': detector('GFL'), 'allow_random': True}, distill)['model'])


@pytest.mark.parametrize(
    'loss', [{'type': 'freekd_mm.LDLoss'}, {'type': 'freekd_mm.CrossKDLoss', 'boxes': 'distances'}]
)
def test_boxes_that_are_something_else(loss: dict) -> None:
    """Nine anchors with four deltas each have the shape of a distribution over nine bins."""
    teacher = detector('RetinaNet')
    teacher['bbox_head']['anchor_generator'] = {**RETINA['anchor_generator'], 'ratios': [0.5, 1.0, 2.0]}
    distill = {'ld': {'student': ['bbox_head[0]', 'bbox_head[1]'], 'loss': loss}}
    message = rf"distill 'ld': the boxes that {loss['type'][10:]} compares should be .*'s RetinaHead are deltas"
    with pytest.raises(ValueError, match=message):
        build(distilled({'model': teacher}, {'model': teacher, 'allow_random': True}, distill)['model'])


def test_distances_in_another_unit_are_refused() -> None:
    """With ``norm_on_bbox`` FCOS multiplies by the stride outside of training alone, where the teacher is."""
    taps = ['bbox_head[0]', 'bbox_head[1]']
    for norm, expected in (
        (True, pytest.raises(ValueError, match='should be compared through')),
        (False, nullcontext()),
    ):
        model = detector('FCOS')
        model['bbox_head']['norm_on_bbox'] = norm
        distill = {'box': {'student': taps, 'loss': {'type': 'freekd_mm.CrossKDLoss', 'boxes': 'distances'}}}
        with expected:
            build(distilled({'model': model}, {'model': model, 'allow_random': True}, distill)['model'])


def test_a_model_without_a_dense_head_has_no_boxes_to_check() -> None:
    entry = SimpleNamespace(losses=[SimpleNamespace(boxes='distances')], through=None)
    check_boxes(entry, nn.Identity(), nn.Identity())


def test_other_levels() -> None:
    distill = {'cross': {**entry('GFL'), 'student': ['bbox_head.cls_convs.1']}}
    message = "two towers with 3 levels each, as in the teacher's head, but got 3 levels in all"
    with pytest.raises(ValueError, match=message):
        build(distilled({'model': detector('GFL')}, {'model': detector('GFL'), 'allow_random': True}, distill)['model'])
