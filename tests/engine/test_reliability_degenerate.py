"""Distilled models on images that hold nothing, or next to nothing: losses and gradients stay finite."""

from __future__ import annotations

import pytest
import tiny_configs
import torch
from distill_cases import CWD, build, det_samples, distilled, images, seg_samples, total

PKD = {'type': 'mmrazor.PKDLoss', 'loss_weight': 1.0}
FAM = {'type': 'freekd_mm.FAMConnector', 'in_channels': 16, 'out_channels': 24, 'num_levels': 3, 'rank': 4}
FIGKD = {'type': 'freekd_mm.FiGKDLoss', 'num_classes': 8, 'use_sigmoid': True, 'foreground': True}
DET_ENTRIES = {
    'freekd': {'loss': {'type': 'freekd_mm.FreeKDLoss', 'channels': 24}},
    'plus': {'loss': {'type': 'freekd_mm.FreeKDPlusLoss', 'channels': 24}},
    'code': {'loss': {'type': 'freekd_mm.FreeKDLoss', 'channels': 24, 'mode': 'code'}},
    'dct': {'loss': {'type': 'freekd_mm.DCTAttentionLoss'}},
    'fam': {'connector': FAM, 'loss': {'type': 'freekd_mm.FeatureMSELoss'}},
    'figkd': {'student': 'bbox_head[0]', 'loss': FIGKD},
    'pkd': {'loss': PKD},
    'cwd': {'loss': CWD},
}


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    root = tmp_path_factory.mktemp('none')
    config = tiny_configs.detector(root)
    classes = config['model']['bbox_head']['num_classes']
    other = tiny_configs.detector(root, width=16, channels=24)['model']
    entries = {name: {**entry, 'loss': dict(entry['loss'])} for name, entry in DET_ENTRIES.items()}
    entries['figkd']['loss']['num_classes'] = classes
    config = distilled(config, {'model': other, 'allow_random': True}, entries)
    torch.manual_seed(0)
    model = build(config['model'])
    model.init_weights()
    return model.train()


def without_objects(samples):
    for sample in samples:
        boxes = sample.gt_instances
        sample.gt_instances = boxes[torch.zeros(len(boxes), dtype=torch.bool)]
    return samples


CASES = {
    'no objects': lambda: (images(2), without_objects(det_samples(2))),
    'objects in one image': lambda: (images(2), [det_samples(1)[0], *without_objects(det_samples(1))]),
    'one image': lambda: (images(1), det_samples(1)),
    'one image without objects': lambda: (images(1), without_objects(det_samples(1))),
    'levels of one pixel': lambda: (images(2, (32, 32)), det_samples(2, (32, 32))),
    'one row': lambda: (images(2, (32, 96)), det_samples(2, (32, 96))),
    'black images': lambda: (torch.zeros(2, 3, 64, 64), det_samples(2)),
    'constant images': lambda: (torch.ones(2, 3, 64, 64), det_samples(2)),
    'the same image twice': lambda: (images(1).expand(2, -1, -1, -1).clone(), det_samples(2)),
    'huge values': lambda: (images(2) * 1e4, det_samples(2)),
    'tiny values': lambda: (images(2) * 1e-8, det_samples(2)),
}


def check(model, inputs, samples):
    before = inputs.clone()
    model.zero_grad()
    losses = model.loss(inputs, samples)
    for key, value in losses.items():
        values = value if isinstance(value, list) else [value]
        assert all(bool(torch.isfinite(item).all()) for item in values), key
    total(losses).backward()
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    assert not bad
    assert torch.equal(inputs, before)


@pytest.mark.parametrize('case', CASES)
def test_detector(case, detector):
    check(detector, *CASES[case]())


@pytest.mark.parametrize('case', ['all ignored', 'one class', 'black images', 'huge values'])
def test_segmenter(case, tmp_path):
    config = tiny_configs.segmenter(tmp_path)
    other = tiny_configs.segmenter(tmp_path, width=16)['model']
    entries = {
        'freekd': {'student': 'backbone[3]', 'loss': {'type': 'freekd_mm.FreeKDLoss', 'channels': 128}},
        'dct': {'student': 'backbone[3]', 'loss': {'type': 'freekd_mm.DCTAttentionLoss'}},
        'figkd': {'student': 'decode_head', 'loss': {'type': 'freekd_mm.FiGKDLoss', 'distance': 'kl'}},
    }
    torch.manual_seed(0)
    model = build(distilled(config, {'model': other, 'allow_random': True}, entries)['model'], 'mmseg').train()
    inputs, samples = images(2), seg_samples(2)
    for sample in samples:
        if case == 'all ignored':
            sample.gt_sem_seg.data[:] = 255
        elif case == 'one class':
            sample.gt_sem_seg.data[:] = 1
    inputs = {'black images': inputs * 0, 'huge values': inputs * 1e4}.get(case, inputs)
    check(model, inputs, samples)
