"""Shared outputs of the teacher: the same up to rounding, computed once for each picture, kept apart by teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import CWD, Calls, build, det_samples, distilled, images, total
from torch import nn

from freekd_mm.runtime.taps import parse_taps
from freekd_mm.runtime.teacher import SharedOutputs

STUDENT = tiny_configs.detector(Path('.'))['model']
TEACHER = {**tiny_configs.detector(Path('.'), head='gfl', width=16, channels=24)['model'], '_scope_': 'mmdet'}
TAPS = {'kd': 'neck', 'one': 'neck[0]', 'some': 'neck[0:2]'}
DISTILL = {name: {'student': tap, 'loss': CWD} for name, tap in TAPS.items()}


def student(outputs=None, **teacher):
    teacher = {'model': TEACHER, 'allow_random': True, **teacher}
    if outputs is not None:
        teacher['outputs'] = str(outputs)
    torch.manual_seed(0)
    return build(distilled({'model': STUDENT}, teacher, DISTILL)['model'])


def losses(model, count=3):
    with torch.random.fork_rng():
        found = model.loss(images(count), det_samples(count))
    return {name: total({name: value}) for name, value in found.items() if 'loss' in name}


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob('*.pth'))


def test_a_second_run_takes_what_the_first_one_left(tmp_path):
    plain, first, second = student(), student(tmp_path), student(tmp_path)
    expected = losses(plain)
    torch.testing.assert_close(losses(first), expected)
    assert len(files(tmp_path)) == 3
    calls = Calls(second.teacher, 'backbone')
    torch.testing.assert_close(losses(second), expected)
    assert calls.counts == {'backbone': 0}


def test_pictures_are_known_in_other_batches_too(tmp_path):
    model = student(tmp_path)
    losses(model, 3)
    before = files(tmp_path)
    model.loss(images(3)[[2, 0]], det_samples(2))
    assert files(tmp_path) == before
    model.loss(images(3).flip(-1), det_samples(3))
    assert len(files(tmp_path)) == 6


def test_gradients_are_those_without(tmp_path):
    gradients = []
    for folder in (None, tmp_path, tmp_path):
        model = student(folder)
        sum(losses(model).values()).backward()
        gradients.append([value.grad for value in model.parameters() if value.grad is not None])
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0])


def test_another_teacher_has_files_of_its_own(tmp_path):
    losses(student(tmp_path), 1)
    teachers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        teachers.append(build(TEACHER))
    teacher, other = teachers
    shared = SharedOutputs(tmp_path, teacher, parse_taps('neck'))
    assert not shared.folder.exists()
    assert SharedOutputs(tmp_path, teacher, parse_taps('neck')).folder == shared.folder
    assert SharedOutputs(tmp_path, other, parse_taps('neck')).folder != shared.folder, 'only the weights differ'
    assert SharedOutputs(tmp_path, teacher, parse_taps('backbone')).folder != shared.folder


def test_options_without_weights_and_precisions_have_files_of_their_own(tmp_path):
    folders = set()
    for count in (1, 2):
        model = student(tmp_path, model={**TEACHER, 'test_cfg': {'nms_pre': count}})
        folders.add(model.distillation.teacher.shared.folder)
    assert len(folders) == 2
    full, half = student(tmp_path), student(tmp_path)
    losses(full)
    before = files(tmp_path)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses(half)
    assert len(files(tmp_path)) == 2 * len(before)


class Mixing(nn.Module):
    """Subtracts the mean of the batch."""

    def forward(self, images):
        return images - images.mean(0)


@pytest.mark.parametrize('model', [Mixing(), lambda inputs: inputs.repeat(3, 1, 1, 1)], ids=['mixed', 'another number'])
def test_outputs_that_are_not_of_each_picture_are_refused(model, tmp_path):
    shared = SharedOutputs(tmp_path, nn.Identity(), parse_taps('x'))
    with pytest.raises(ValueError, match="depend on each picture alone, but those at 'x' do not"):
        shared(images(2), None, lambda inputs, _: {'x': (model(inputs),)})
    assert not files(tmp_path)
