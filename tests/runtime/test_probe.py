"""The dummy image: its size, what a model does with it in training, and where it runs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import L2, build, det_samples, distilled, images
from mmengine.hub import get_config
from mmengine.model import BaseModel
from torch import nn

from freekd_mm.runtime import probe
from freekd_mm.runtime.probe import config_size, eval_mode, first_accepted, probe_model, probe_sizes
from freekd_mm.runtime.taps import Tap, TapRecorder

DETECTOR = {**tiny_configs.detector(Path('.'))['model'], '_scope_': 'mmdet'}


@pytest.mark.parametrize(
    ('pipeline', 'size'),
    [
        ([{'type': 'Resize', 'scale': (1333, 800)}], (128, 224)),
        (
            [{'type': 'RandomResize', 'scale': (2048, 1024)}, {'type': 'RandomCrop', 'crop_size': (512, 1024)}],
            (128, 256),
        ),
        ([{'type': 'RandomChoiceResize', 'scales': [(1333, 640)]}], (128, 128)),
        ([{'type': 'Resize', 'scale': (64, 64)}], (128, 128)),
        ([{'type': 'Mosaic', 'img_scale': (640, 640)}, {'type': 'PackDetInputs'}], (224, 224)),
        ([], (128, 128)),
    ],
)
def test_its_size_comes_from_the_pipeline(pipeline, size):
    dataset = {'type': 'RepeatDataset', 'dataset': {'type': 'CocoDataset', 'pipeline': pipeline}}
    assert config_size({'train_dataloader': {'dataset': dataset}}) == size


class Picky(BaseModel):
    """Refuses small images."""

    def __init__(self, least=300):
        super().__init__()
        self.least, self.backbone = least, nn.Conv2d(3, 4, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if inputs.shape[-1] < self.least:
            raise ValueError(f'{inputs.shape[-1]} is too small')
        return self.backbone(inputs)


def run(model, size):
    recorder = TapRecorder(model, [Tap('backbone')], 'student')
    probe_model(model, recorder, size)
    return size


def test_it_grows_until_a_model_takes_it():
    model = Picky()
    assert probe_sizes([model]) == [(128, 128), (256, 256), (512, 512), (1024, 1024)]
    assert first_accepted([model], None, lambda size: run(model, size)) == (512, 512)
    model.img_size = 320
    assert first_accepted([model], None, lambda size: run(model, size)) == (320, 320)
    # One that the user chose is the only one.
    with pytest.raises(RuntimeError, match=r'on a dummy image of 64x64 .*64 is too small.* Set probe_size'):
        first_accepted([model], (64, 64), lambda size: run(model, size))


def test_the_first_refusal_is_named_where_every_size_is_refused():
    model = Picky(least=9999)
    with pytest.raises(RuntimeError, match='128 is too small'):
        first_accepted([model], None, lambda size: run(model, size))


def test_an_operator_without_a_cpu_kernel_runs_where_the_training_will(monkeypatch):
    places = []

    class Elsewhere(Picky):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            if inputs.dtype == torch.float32 and not places:
                places.append('cpu')
                raise RuntimeError('carafe_forward_impl: implementation for device cpu not found.')
            places.append('cuda')
            return self.backbone(inputs)

    model = Elsewhere()
    monkeypatch.setattr(probe, 'get_device', lambda: 'cpu:0')  # a device of another name, as a GPU is
    assert run(model, (64, 64)) == (64, 64)
    assert places[0] == 'cpu'
    assert 'cuda' in places


def test_an_operator_without_a_kernel_is_no_matter_of_the_image():
    class Carafe(Picky):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            raise RuntimeError('carafe_forward_impl: implementation for device cpu not found.\n')

    with pytest.raises(
        RuntimeError,
        match=r'device cpu not found\. Set probe_size .*; an operator that has no code for this device needs a GPU',
    ):
        first_accepted([Carafe()], None, lambda size: run(Carafe(), size))


def test_norms_keep_their_statistics_and_modules_their_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Sequential(nn.ReLU())).train()
    model[3].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    with eval_mode(model, training=True):
        assert model.training
        assert not model[1].training
        assert not model[2].training
        assert not model[3].training
        model(torch.rand(1, 3, 1, 1))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model[1].num_batches_tracked == 0


def trident():
    """A backbone that makes three maps of each image, in training alone."""
    model = get_config('mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py').model
    model.backbone.update(base_channels=4, stem_channels=4, init_cfg=None)
    model.rpn_head.update(in_channels=64, feat_channels=8)
    model.roi_head.bbox_roi_extractor.out_channels = 64
    model.roi_head.shared_head.update(stage=3, init_cfg=None)
    return {**model.to_dict(), '_scope_': 'mmdet'}


def test_another_batch_in_training_is_found_before_training():
    teacher = {'model': trident(), 'allow_random': True}
    entries = {'kd': {'student': 'backbone', 'loss': L2}}
    message = r'backbone of the student should give as many maps .* gives 3 where the teacher gives 1; tap a module'
    with pytest.raises(ValueError, match=message):
        build(distilled({'model': trident()}, teacher, entries)['model'])
    model = build(distilled({'model': trident()}, teacher, {'kd': {'student': 'backbone.layer2', 'loss': L2}})['model'])
    assert model.distillation.entry('kd').rows[0][2] == '32x8x8'


def test_of_several_batches_by_name_the_labelled_one_is_distilled():
    wrapper = get_config('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py').model
    student = {**wrapper.to_dict(), '_scope_': 'mmdet', 'detector': copy.deepcopy(DETECTOR), 'type': 'SemiBaseDetector'}
    student['data_preprocessor']['data_preprocessor'] = copy.deepcopy(DETECTOR['data_preprocessor'])
    entries = {'kd': {'student': 'student.neck', 'teacher': 'neck', 'loss': L2}}
    model = build(distilled({'model': student}, {'model': DETECTOR, 'allow_random': True}, entries)['model']).train()
    inputs = {name: images(2, seed=seed) for seed, name in enumerate(('sup', 'unsup_teacher', 'unsup_student'))}
    samples = {name: det_samples(2, (64, 64)) for name in inputs}
    calls = []

    def student_loss():
        for name in ('sup', 'unsup_student'):
            calls.append(model.student.extract_feat(inputs[name]))
        return {'loss': calls[0][0].sum()}

    losses = model.distillation.run(student_loss, inputs, samples)
    alone = build(distilled({'model': student}, {'model': DETECTOR, 'allow_random': True}, entries)['model'])
    assert set(losses) >= {'loss', 'distill.loss_kd'}
    assert len(alone.distillation.entry('kd').rows) == len(calls[0])
    teachers = model.distillation.teacher.model.extract_feat(inputs['sup'])
    wanted = sum((own - other).square().mean() for own, other in zip(calls[0], teachers))
    torch.testing.assert_close(losses['distill.loss_kd'], wanted)
