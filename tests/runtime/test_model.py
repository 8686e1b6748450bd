"""A distilled student is the student: its class, its weights, its initialisation, and the losses on top."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import CWD, L2, build, det_samples, differing, distilled, images, student_weights, total
from mmengine.config import Config

from freekd_mm.compat.versions import zip_equal
from freekd_mm.engine.evaluation import plain_config
from freekd_mm.runtime.config import find_model, is_distilled, load_config, without_pretrained
from freekd_mm.runtime.model import DistilledModel, student_state_dict

STUDENT = tiny_configs.detector(Path('.'))['model']
TEACHER = tiny_configs.detector(Path('.'), head='gfl', width=16, channels=24)['model']
RANDOM = {'model': TEACHER, 'allow_random': True}
NECK = {'kd': {'student': 'neck', 'loss': CWD}}
MGD = {
    'student': 'neck',
    'connector': {'type': 'mmrazor.MGDConnector', 'student_channels': 16, 'teacher_channels': 24},
    'loss': {'type': 'mmrazor.MGDLoss', 'alpha_mgd': 1e-3},
}
PREPROCESSOR = {'type': 'mmdet.DetDataPreprocessor'}


def model_config(distill=NECK, student=STUDENT, **options):
    return distilled({'model': student}, RANDOM, distill, **options)['model']


def loss(model, size=(64, 64), count=2):
    return model.loss(images(count, size), det_samples(count, size))


# The student stays itself.


def test_is_an_instance_of_the_students_class():
    model, plain = build(model_config()), build(STUDENT)
    assert isinstance(model, type(plain))
    assert type(model).__name__ == 'DistilledRetinaNet'
    assert type(build(model_config())) is type(model)
    assert [name for name, _ in model.named_children()] == [*(n for n, _ in plain.named_children()), 'distillation']


def test_state_is_the_students_and_the_distillation_on_top():
    model, plain = build(model_config()), build(STUDENT)
    assert list(student_state_dict(model.state_dict())) == list(plain.state_dict())
    plain.load_state_dict(student_state_dict(model.state_dict()))
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith('distillation.') for key in missing)


@pytest.mark.parametrize('rule', [None, {'type': 'Normal', 'layer': 'Conv2d', 'std': 0.02}])
def test_initialisation_is_that_of_the_plain_student(rule):
    """Also with a rule at the top of the student's config, which would reach into every child."""
    student = {**STUDENT, 'init_cfg': rule}
    results = []
    for config in (student, model_config({'mgd': MGD}, student)):
        torch.manual_seed(3)
        model = build(config)
        built = torch.get_rng_state()
        connectors = copy.deepcopy({k: v for k, v in model.state_dict().items() if 'distillation.entries' in k})
        model.init_weights()
        assert not differing(connectors, {k: v for k, v in model.state_dict().items() if k in connectors})
        results.append((student_weights(model), built, torch.get_rng_state()))
    assert connectors
    assert not differing(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])


def test_predictions_are_the_students():
    model, plain = build(model_config()), build(STUDENT)
    plain.load_state_dict(student_state_dict(model.state_dict()))
    data = {'inputs': list(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)), 'data_samples': det_samples()}
    outputs = [each.eval().test_step(copy.deepcopy(data)) for each in (plain, model)]
    for expected, actual in zip_equal(*outputs):
        assert torch.equal(expected.pred_instances.bboxes, actual.pred_instances.bboxes)
        assert torch.equal(expected.pred_instances.scores, actual.pred_instances.scores)


def test_own_data_preprocessor_wins_as_in_plain_training():
    """mmengine passes the one of a config's top level on, for models that have none."""
    own = build(model_config(data_preprocessor={**PREPROCESSOR, 'pad_size_divisor': 7}))
    assert own.data_preprocessor.pad_size_divisor == 32
    without = {key: value for key, value in STUDENT.items() if key != 'data_preprocessor'}
    passed = build(model_config(student=without, data_preprocessor={**PREPROCESSOR, 'pad_size_divisor': 7}))
    assert passed.data_preprocessor.pad_size_divisor == 7


# Losses.


def test_losses_are_the_students_and_the_distillations():
    model = build(model_config({'kd': NECK['kd'], 'mse': {'student': 'neck', 'loss': L2, 'weight': 2.0}}))
    losses = loss(model)
    assert {'loss_cls', 'loss_bbox', 'distill.loss_kd', 'distill.loss_mse'} <= set(losses)
    assert {f'distill.{name}.level{level}' for name in ('kd', 'mse') for level in range(3)} <= set(losses)
    parts = [value for key, value in losses.items() if 'loss' in key]
    assert torch.allclose(total(losses), sum(torch.stack(v).sum() if isinstance(v, list) else v for v in parts))


@pytest.mark.parametrize('size', [(64, 64), (96, 64), (64, 128)])
def test_size_may_change_from_step_to_step(size):
    model = build(model_config())
    loss(model)
    losses = loss(model, size)
    total(losses).backward()
    assert losses['distill.loss_kd'].isfinite()
    assert model.backbone.conv1.weight.grad.isfinite().all()


def test_masks_differ_from_step_to_step_and_go_on_after_a_resume():
    """A detector draws no random numbers: its state alone would give the same masks at every step."""
    torch.manual_seed(0)
    model = build(model_config({'mgd': MGD})).eval()
    values = [float(loss(model)['distill.loss_mgd']) for _ in range(3)]
    assert len(set(values)) == 3
    state = copy.deepcopy(model.state_dict())
    fourth = float(loss(model)['distill.loss_mgd'])
    resumed = build(model_config({'mgd': MGD})).eval()
    resumed.load_state_dict(state)
    resumed.teacher.load_state_dict(model.teacher.state_dict())
    torch.manual_seed(0)
    assert float(loss(resumed)['distill.loss_mgd']) == fourth


def test_students_random_numbers_are_left_alone():
    model, plain = build(model_config({'mgd': MGD})), build(STUDENT)
    states = []
    for each in (plain, model):
        torch.manual_seed(5)
        loss(each)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_frozen_student_features():
    student = copy.deepcopy(STUDENT)
    student['backbone']['frozen_stages'] = 1
    model = build(model_config({'kd': {'student': 'backbone.layer1', 'loss': CWD}}, student)).train()
    message = 'features at backbone.layer1 should carry a gradient, but do not; they are in a frozen stage'
    with pytest.raises(RuntimeError, match=message):
        loss(model)


def test_activation_checkpoints():
    """A tap inside of one is an error that says so; a tap behind it is trained as without it."""
    student = copy.deepcopy(STUDENT)
    student['backbone']['with_cp'] = True
    inside = build(model_config({'kd': {'student': 'backbone.layer2.0.conv2', 'loss': CWD}}, student)).train()
    with pytest.raises(RuntimeError, match='inside an activation checkpoint: tap a module after it'):
        loss(inside)
    torch.manual_seed(0)
    behind = build(model_config(student=student)).train()
    without = build(model_config()).train()
    without.load_state_dict(behind.state_dict())
    without.teacher.load_state_dict(behind.teacher.state_dict())
    for model in (behind, without):
        total(loss(model)).backward()
    for first, second in zip_equal(behind.parameters(), without.parameters()):
        assert (first.grad - second.grad).abs().max() <= 1e-5 * second.grad.abs().max()


def test_mmengine_activation_checkpointing():
    """It replaces the forward method of the modules that a config names; a tap on such a module is behind it."""
    checkpointing = pytest.importorskip('mmengine.runner.activation_checkpointing')
    model = build(model_config({'kd': {'student': 'backbone.layer3', 'loss': CWD}})).train()
    checkpointing.turn_on_activation_checkpointing(model, ['backbone.layer3'])
    wrapped = model.backbone.layer3.forward
    total(loss(model)).backward()
    assert model.backbone.layer3[0].conv1.weight.grad.abs().sum() > 0
    assert model.backbone.layer3.forward is wrapped


# Features alone.


def test_without_the_students_own_loss():
    model = build(model_config(task_loss=False))
    losses = loss(model)
    assert not [key for key in losses if not key.startswith('distill.')]
    total(losses).backward()
    assert model.neck.fpn_convs[0].conv.weight.grad.abs().sum() > 0
    assert model.bbox_head.retina_cls.weight.grad is None


def test_encoder():
    encoder = {
        'type': 'freekd_mm.FeatureEncoder',
        'backbone': STUDENT['backbone'],
        'neck': STUDENT['neck'],
        'data_preprocessor': STUDENT['data_preprocessor'],
    }
    model = build(model_config(student=encoder))
    data = {'inputs': list(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)), 'data_samples': det_samples()}
    data = model.data_preprocessor(data, True)
    value, logs = model.parse_losses(model(**data, mode='loss'))
    value.backward()
    assert torch.equal(logs['loss'], logs['distill.loss_kd'])
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert [tuple(level.shape) for level in model(images(1))] == [(1, 16, 8, 8), (1, 16, 4, 4), (1, 16, 2, 2)]


def test_nothing_to_train_on():
    model = build(model_config(task_loss=False))
    model.distillation_stopped = True
    with pytest.raises(RuntimeError, match='there should be a loss to train on'):
        loss(model)


# What a user may get wrong.


@pytest.mark.parametrize(
    ('config', 'error', 'message'),
    [
        (model_config([NECK]), ValueError, 'distill should be a dict of named entries'),
        (model_config({'kd': {'loss': CWD, 'student': 'nek'}}), ValueError, "Did you mean 'neck'"),
        (model_config({'kd': {'loss': CWD, 'teacher': 'nek'}}), ValueError, 'module of the teacher'),
        (model_config(student=STUDENT['backbone']), TypeError, 'for a bare backbone use freekd_mm.FeatureEncoder'),
        (model_config(probe_size=(0, 64)), RuntimeError, 'Set probe_size to a size that it accepts'),
    ],
    ids=['list', 'student tap', 'teacher tap', 'backbone', 'probe'],
)
def test_errors(config, error, message):
    with pytest.raises(error, match=message):
        build(config)


def test_unknown_entry():
    model = build(model_config())
    with pytest.raises(ValueError, match=r"distill entry should be one of 'kd', but got 'kdd'. Did you mean 'kd'"):
        model.distillation.entry('kdd')


# Configs.


def test_model_of_a_distillation_config_is_its_student():
    config = Config({'model': model_config(), 'default_scope': 'mmdet', 'data_preprocessor': PREPROCESSOR})
    model, scope = find_model(config)
    assert model.type == 'RetinaNet'
    assert model.data_preprocessor.pad_size_divisor == 32
    assert scope == 'mmdet'
    with pytest.raises(ValueError, match="config should define 'model', but has default_scope"):
        find_model(Config({'default_scope': 'mmdet'}))


@pytest.mark.parametrize('kind', ['freekd_mm.DistilledModel', 'DistilledModel', DistilledModel])
def test_type_may_be_an_object(kind):
    assert is_distilled({'type': kind})
    assert not is_distilled({'type': 'RetinaNet'})
    assert not is_distilled({'type': torch.nn.Conv2d})


def test_config_in_pure_python(tmp_path):
    """mmengine's newer configs name classes by importing them."""
    (tmp_path / 'distill.py').write_text(
        'from freekd_mm.runtime.model import DistilledModel\n'
        'from mmdet.models import RetinaNet\n'
        'model = dict(type=DistilledModel, architecture=dict(type=RetinaNet), teacher=dict(), distill=dict())\n'
    )
    config = load_config(str(tmp_path / 'distill.py'))
    assert find_model(config)[0].type.__name__ == 'RetinaNet'
    assert plain_config(config).model.type.__name__ == 'RetinaNet'


def test_pretrained_weights_are_not_downloaded_for_a_teacher():
    config = {
        'pretrained': 'torchvision://resnet50',
        'backbone': {'init_cfg': {'type': 'Pretrained', 'checkpoint': 'x'}, 'pretrained': True},
        'neck': [{'init_cfg': {'type': 'Xavier', 'layer': 'Conv2d'}}],
    }
    assert without_pretrained(config) == {
        'pretrained': None,
        'backbone': {'init_cfg': None, 'pretrained': False},
        'neck': [{'init_cfg': {'type': 'Xavier', 'layer': 'Conv2d'}}],
    }
