"""The teacher: frozen, outside of the student, run no further than needed, in its own precision."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import (
    CWD,
    Calls,
    build,
    det_samples,
    distilled,
    images,
    needs_mmrazor,
    save_weights,
    seg_samples,
    total,
)
from torch_versions import HALF, newer_torch

from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime import teacher as teacher_module
from freekd_mm.runtime.taps import parse_taps
from freekd_mm.runtime.teacher import FrozenTeacher, computes_in

STUDENT = tiny_configs.detector(Path('.'))['model']
TEACHER = {**tiny_configs.detector(Path('.'), head='gfl', width=16, channels=24)['model'], '_scope_': 'mmdet'}
SEGMENTER = tiny_configs.segmenter(Path('.'))['model']
RANDOM = {'model': TEACHER, 'allow_random': True}


def student(teacher=RANDOM, tap='neck', **options):
    distill = {'kd': {'student': tap, 'teacher': tap, 'loss': CWD}}
    return build(distilled({'model': STUDENT}, teacher, distill, **options)['model'])


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return str(save_weights(TEACHER, tmp_path_factory.mktemp('teacher') / 'teacher.pth'))


@pytest.fixture
def model():
    return student()


def loss(model, count=2):
    return model.loss(images(count), det_samples(count))


# Frozen, and outside of the student.


def test_parent_does_not_wake_it(model):
    model.train()
    assert model.training
    assert not any(module.training for module in model.teacher.modules())
    loss(model)
    assert not any(module.training for module in model.teacher.modules())


def test_no_gradient_and_no_running_statistics(model):
    before = copy.deepcopy(model.teacher.state_dict())
    model.train()
    total(loss(model)).backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.teacher.state_dict().items())


def test_is_in_no_list_of_the_student(model):
    teacher = {id(tensor) for tensor in (*model.teacher.parameters(), *model.teacher.buffers())}
    assert teacher
    assert not teacher & {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert not {id(module) for module in model.teacher.modules()} & {id(module) for module in model.modules()}
    plain = build(STUDENT).state_dict()
    extra = [key for key in model.state_dict() if key not in plain]
    assert all(key.startswith(('distillation.entries.kd.connector', 'distillation._extra')) for key in extra)


def test_copy_shares_it(model):
    """EMA copies the student, not the teacher."""
    other = copy.deepcopy(model)
    assert other.distillation is not model.distillation
    assert other.teacher is model.teacher
    assert other.neck is not model.neck
    with torch.random.fork_rng():
        assert torch.equal(total(loss(other)), total(loss(model)))


def test_recorded_tensors_do_not_outlive_the_step(model):
    loss(model)
    recorders = (model.distillation.student_recorder, model.distillation.teacher.recorder)
    assert all(not outputs for recorder in recorders for outputs in recorder.outputs.values())


# Only as far as needed.


@pytest.mark.parametrize(
    ('tap', 'runs'),
    [
        ('backbone', {'backbone.layer4': 1, 'neck': 0, 'bbox_head.gfl_cls': 0}),
        ('backbone.layer3', {'backbone.layer3': 1, 'backbone.layer4': 0, 'neck': 0}),
        ('neck', {'backbone.layer4': 1, 'neck': 1, 'bbox_head.gfl_cls': 0}),
        ('neck.fpn_convs.0', {'neck.fpn_convs.0.conv': 1, 'neck.fpn_convs.1.conv': 0}),
        ('bbox_head.cls_convs.0', {'bbox_head.cls_convs.0.conv': 3, 'bbox_head.gfl_cls': 2}),
    ],
)
def test_stops_behind_the_last_tap(tap, runs):
    """The head's towers run once a level: the last of three levels ends the pass, in front of its own logits."""
    model = student(RANDOM, tap)
    calls = Calls(model.teacher, *runs)
    loss(model)
    assert calls.counts == runs
    loss(model)
    assert calls.counts == {path: 2 * count for path, count in runs.items()}


def test_last_of_several_taps_decides():
    distill = {
        'late': {'student': 'neck', 'teacher': 'neck', 'loss': CWD},
        'early': {'student': 'backbone.layer2', 'teacher': 'backbone.layer2', 'loss': CWD},
    }
    model = build(distilled({'model': STUDENT}, RANDOM, distill)['model'])
    calls = Calls(model.teacher, 'neck', 'bbox_head.gfl_cls')
    assert {'distill.loss_late', 'distill.loss_early'} <= set(loss(model))
    assert calls.counts == {'neck': 1, 'bbox_head.gfl_cls': 0}


def test_segmenters_logits():
    """The decode head is called by its forward method, in training too."""
    teacher = tiny_configs.segmenter(Path('.'), width=16)['model']
    distill = {
        'layer': {'student': 'decode_head.conv_seg', 'loss': CWD},
        'head': {'student': 'decode_head', 'loss': {'type': 'freekd_mm.FiGKDLoss'}},
    }
    config = distilled({'model': SEGMENTER}, {'model': teacher, 'allow_random': True}, distill)
    losses = build(config['model'], 'mmseg').loss(images(), seg_samples())
    assert losses['distill.loss_layer'] > 0
    assert losses['distill.loss_head'] > 0


def test_detectors_logits():
    teacher = tiny_configs.detector(Path('.'), width=16)['model']
    figkd = {'student': 'bbox_head[0]', 'loss': {'type': 'freekd_mm.FiGKDLoss', 'num_classes': 6}}
    model = build(distilled({'model': STUDENT}, {'model': teacher, 'allow_random': True}, {'figkd': figkd})['model'])
    losses = loss(model)
    assert losses['distill.loss_figkd'] > 0
    total(losses).backward()
    assert model.bbox_head.retina_cls.weight.grad.abs().sum() > 0


def test_weight_zero_does_not_run_it(model):
    calls = Calls(model.teacher, 'backbone')
    model.distillation.entry('kd').scale = 0.0
    assert not [key for key in loss(model) if key.startswith('distill')]
    model.distillation.entry('kd').scale = 1.0
    model.distillation_stopped = True
    assert not [key for key in loss(model) if key.startswith('distill')]
    assert calls.counts['backbone'] == 0


# Precision.


def computing_in_half(monkeypatch, able):
    """Whatever this CPU can: it computes in half precision, or would only imitate it."""
    monkeypatch.setattr(teacher_module, 'computes_in', lambda dtype, device: able)


@pytest.mark.parametrize(
    ('name', 'dtype', 'tolerance'),
    [('bf16', torch.bfloat16, 0.1), pytest.param('fp16', torch.half, 0.02, marks=HALF[0].marks)],
)
def test_half_precision(monkeypatch, checkpoint, name, dtype, tolerance):
    computing_in_half(monkeypatch, True)
    full = student({'model': TEACHER, 'checkpoint': checkpoint})
    half = student({'model': TEACHER, 'checkpoint': checkpoint, 'dtype': name})
    assert {p.dtype for p in half.teacher.parameters()} == {dtype}
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    taps = parse_taps('neck')
    recorded = []
    for model in (full, half):
        model.distillation.teacher.run(images())
        recorded.append(model.distillation.teacher.levels(taps))
    assert all(level.dtype == dtype for level in recorded[1])
    for expected, level in zip_equal(*recorded):
        assert (level.float() - expected).abs().max() < tolerance * expected.abs().max()
    half.load_state_dict(full.state_dict())
    values = [loss(model)['distill.loss_kd'] for model in (full, half)]
    assert values[1].dtype == torch.float32
    assert torch.allclose(*values, rtol=tolerance)


def test_no_half_precision_where_it_is_imitated(monkeypatch, checkpoint):
    """The rounded weights, computed in float32; where a device can, in half precision again."""
    options = {'model': TEACHER, 'checkpoint': checkpoint, 'dtype': 'bf16'}
    taps = parse_taps('neck')
    computing_in_half(monkeypatch, False)
    model = student(options)
    assert {p.dtype for p in model.teacher.parameters()} == {torch.float32}
    assert all(torch.equal(p, p.bfloat16().float()) for p in model.teacher.parameters())
    teacher = model.distillation.teacher
    teacher.run(images())
    assert {level.dtype for level in teacher.levels(taps)} == {torch.float32}
    computing_in_half(monkeypatch, True)
    teacher.clear()
    teacher.run(images())
    assert {p.dtype for p in model.teacher.parameters()} == {torch.bfloat16}
    assert {level.dtype for level in teacher.levels(taps)} == {torch.bfloat16}


@newer_torch('question to the CPU')
def test_which_devices_compute_in_half_precision():
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    for dtype, able in supported.items():
        assert computes_in(dtype, torch.device('cpu')) is able
        assert computes_in(dtype, torch.device('cuda'))


def test_half_precision_keeps_its_normalisation():
    """The statistics of the images are not rounded with the weights."""
    assert student({**RANDOM, 'dtype': 'bf16'}).distillation.teacher.bridge is None
    caffe = copy.deepcopy(TEACHER)
    caffe['data_preprocessor'].update(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], bgr_to_rgb=False)
    bridge = student({'model': caffe, 'allow_random': True, 'dtype': 'bf16'}).distillation.teacher.bridge
    assert bridge.swap
    assert bridge.scale == (1, 1, 1)
    assert bridge.shift == pytest.approx((0, 0, 0), abs=1e-6)


def test_keeps_its_precision_whatever_the_student_becomes(model):
    before = copy.deepcopy(model.teacher.state_dict())
    model.half()
    model.double()
    assert all(torch.equal(before[key], value) for key, value in model.teacher.state_dict().items())
    assert loss(model.float())['distill.loss_kd'] > 0


@needs_mmrazor
def test_double_precision_student(model):
    model.double()
    losses = model.loss(images().double(), det_samples())
    assert losses['distill.loss_kd'].dtype == torch.float64


def test_runs_in_half_precision_under_autocast(model):
    with torch.autocast('cpu', torch.bfloat16):
        model.distillation.teacher.run(images())
    assert {x.dtype for x in model.distillation.teacher.levels(parse_taps('neck'))} == {torch.bfloat16}


def test_transformer_teacher_in_half_precision():
    """Its position encodings are made in float32."""
    from mmdet.models import DetrTransformerEncoder

    layer = {
        'self_attn_cfg': {'embed_dims': 8, 'num_heads': 2, 'batch_first': True},
        'ffn_cfg': {'embed_dims': 8, 'feedforward_channels': 16, 'num_fcs': 2},
    }

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 8, stride=8)
            self.encoder = DetrTransformerEncoder(num_layers=1, layer_cfg=layer)

        def forward(self, x):
            tokens = self.conv(x).flatten(2).transpose(1, 2)
            position = torch.rand(1, tokens.shape[1], 8)
            return self.encoder(tokens, query_pos=position, key_padding_mask=None)

    teacher = FrozenTeacher(Encoder(), parse_taps('encoder'), 'bf16')
    teacher.run(images())
    assert teacher.levels(parse_taps('encoder'))[0].shape == (2, 64, 8)
