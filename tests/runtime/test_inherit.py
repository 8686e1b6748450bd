"""A student may start with its teacher's weights where both have the same module."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import L2, build, differing, distilled, make_config, save_weights, student_weights
from mmengine.config import Config

from freekd_mm.runtime.inherit import choose_modules, inherited_weights

STUDENT = tiny_configs.detector(Path('.'), head='gfl', width=8, channels=16)['model']
TEACHER = tiny_configs.detector(Path('.'), head='gfl', width=16, channels=16)['model']
ENTRY = {'kd': {'student': 'neck', 'loss': L2}}


@pytest.fixture
def checkpoint(tmp_path):
    return save_weights(TEACHER, tmp_path / 'teacher.pth')


def model_config(checkpoint, **options):
    teacher = {'model': TEACHER, 'checkpoint': str(checkpoint), 'dtype': options.pop('dtype', 'fp32')}
    return distilled({'model': STUDENT}, teacher, ENTRY, **options)['model']


def initialised(config):
    torch.manual_seed(3)
    model = build(config)
    model.init_weights()
    return student_weights(model), torch.get_rng_state()


@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
def test_takes_what_fits_and_keeps_the_rest(checkpoint, dtype):
    """Also from a teacher that runs in half precision: what is inherited is not rounded."""
    own, random = initialised(model_config(checkpoint))
    weights, same_random = initialised(model_config(checkpoint, inherit=['neck', 'bbox_head'], dtype=dtype))
    theirs = torch.load(checkpoint, weights_only=True)['state_dict']
    fitting = {
        name
        for name, value in own.items()
        if name.startswith(('neck.', 'bbox_head.')) and theirs[name].shape == value.shape
    }
    assert any(name.startswith('neck.fpn_convs') for name in fitting)
    assert not any('lateral_convs.0.conv.weight' in name for name in fitting)
    assert not differing({k: weights[k] for k in fitting}, {k: theirs[k] for k in fitting})
    assert set(differing(own, weights)) <= fitting
    assert 'bbox_head.gfl_cls.weight' in differing(own, weights)
    assert torch.equal(random, same_random)


def test_holds_no_copies_after_the_start(checkpoint):
    model = build(model_config(checkpoint, inherit=['bbox_head']))
    assert model.distillation.inherited
    model.init_weights()
    assert not model.distillation.inherited


def test_a_part_of_a_module(checkpoint):
    own, _ = initialised(model_config(checkpoint))
    weights, _ = initialised(model_config(checkpoint, inherit=['bbox_head.gfl_reg']))
    changed = differing(own, weights)
    assert changed
    assert all(name.startswith('bbox_head.gfl_reg') for name in changed)


def test_modules_that_fit():
    student, teacher = build(STUDENT), build(TEACHER)
    assert choose_modules(student, teacher) == ['neck', 'bbox_head']
    narrow = build(tiny_configs.detector(Path('.'), head='gfl', width=8, channels=8)['model'])
    assert choose_modules(narrow, teacher) == ['neck', 'bbox_head']
    assert choose_modules(teacher, narrow) == []


def test_a_narrower_student_takes_the_weights_between_the_first_channels():
    """But no other classes, and nothing for the channels of another backbone."""
    teacher = build(TEACHER)
    narrow = build(tiny_configs.detector(Path('.'), head='gfl', width=8, channels=8)['model'])
    theirs, own = teacher.state_dict(), narrow.state_dict()
    weights = inherited_weights(narrow, teacher, ['neck', 'bbox_head'])
    for name in ('neck.fpn_convs.1.conv.weight', 'bbox_head.cls_convs.0.conv.weight'):
        assert torch.equal(weights[name], theirs[name][:8, :8])
    assert torch.equal(
        weights['bbox_head.cls_convs.0.bn.running_var'], theirs['bbox_head.cls_convs.0.bn.running_var'][:8]
    )
    assert torch.equal(weights['bbox_head.gfl_cls.weight'], theirs['bbox_head.gfl_cls.weight'][:, :8])
    assert {name for name in own if name.startswith('neck.lateral_convs') and name.endswith('conv.weight')}.isdisjoint(
        weights
    )
    fewer = tiny_configs.detector(Path('.'), head='gfl', width=8, channels=8)['model']
    fewer['bbox_head']['num_classes'] = 2
    weights = inherited_weights(build(fewer), teacher, ['bbox_head'])
    assert 'bbox_head.gfl_reg.weight' in weights
    assert {'bbox_head.gfl_cls.weight', 'bbox_head.gfl_cls.bias'}.isdisjoint(weights)


def test_a_head_is_not_inherited_for_its_small_parts():
    """Of a PSPNet on a narrower backbone only the norms and the classifier fit."""
    models = [tiny_configs.segmenter(Path('.'), width=width)['model'] for width in (8, 16)]
    student, teacher = (build(model, 'mmseg') for model in models)
    assert choose_modules(student, teacher) == ['decode_head.conv_seg']
    assert 'decode_head.conv_seg.weight' in inherited_weights(student, teacher, ['decode_head.conv_seg'])


@pytest.mark.parametrize(
    ('inherit', 'error', 'message'),
    [
        ('neck', TypeError, r"inherit should be a list of module names, but got 'neck'; write \['neck'\]"),
        (['neckk'], ValueError, "for example .*backbone, neck, bbox_head.*, but got 'neckk'. Did you mean 'neck'"),
        (['backbone.conv1'], ValueError, 'no more channels, but has none; leave it out'),
    ],
    ids=['text', 'name', 'shapes'],
)
def test_errors(checkpoint, inherit, error, message):
    with pytest.raises(error, match=message):
        build(model_config(checkpoint, inherit=inherit))


@pytest.mark.parametrize(
    ('inherit', 'written'),
    [
        (None, None),
        ((), ['neck', 'bbox_head']),
        (['bbox_head'], ['bbox_head']),
    ],
    ids=['none', 'all that fit', 'one'],
)
def test_make_config_writes_it(det_config, tmp_path, inherit, written):
    student = det_config(name='student', head='gfl', width=8, channels=16)
    teacher = det_config(name='teacher', head='gfl', width=16, channels=16)
    file = make_config(
        str(student), str(teacher), 'teacher.pth', 'mse', tmp_path / 'kd.py', check=False, inherit=inherit
    )[-1]
    assert Config.fromfile(file).model.get('inherit') == written


def test_make_config_finds_nothing_to_inherit(det_config, tmp_path):
    student = det_config(name='student', head='gfl', width=8, channels=16)
    teacher = det_config(name='teacher', head='gfl', width=16, channels=8)
    file = make_config(str(student), str(teacher), 'teacher.pth', 'mse', tmp_path / 'kd.py', check=False)[-1]
    assert 'inherit' not in Config.fromfile(file).model


def test_a_classifier_fits_where_its_head_does_not(seg_config, tmp_path):
    student = seg_config(name='student', width=8)
    teacher = seg_config(name='teacher', width=16)
    file = make_config(str(student), str(teacher), 'teacher.pth', 'mse', tmp_path / 'kd.py', check=False)[-1]
    assert Config.fromfile(file).model.inherit == ['decode_head.conv_seg']
    other = seg_config(name='other', width=16, channels=24)
    file = make_config(str(student), str(other), 'teacher.pth', 'mse', tmp_path / 'kd.py', check=False)[-1]
    assert 'inherit' not in Config.fromfile(file).model
