"""The bridge gives the teacher what its own data preprocessor would have made of the raw images."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from distill_cases import build
from mmengine.registry import MODELS

from freekd_mm.runtime.preprocess import preprocess_bridge

IMAGENET = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], 'bgr_to_rgb': True}
CAFFE = {'mean': [103.53, 116.28, 123.675], 'std': [1.0, 1.0, 1.0], 'bgr_to_rgb': False}
UNIT = {'mean': [0.0, 0.0, 0.0], 'std': [255.0, 255.0, 255.0], 'bgr_to_rgb': True}
NONE = {'mean': None, 'std': None, 'bgr_to_rgb': False}
STYLES = {'imagenet': IMAGENET, 'caffe': CAFFE, 'unit': UNIT, 'none': NONE}


def preprocessor(style: str, package: str = 'mmdet'):
    if package == 'mmseg':
        size = {'size': (32, 32)}
        return build({'type': 'mmseg.SegDataPreProcessor', **STYLES[style], **size}, 'mmseg')
    return MODELS.build({'type': f'{package}.DetDataPreprocessor', **STYLES[style]})


def bridge_of(own, other):
    return preprocess_bridge(*(SimpleNamespace(data_preprocessor=module) for module in (own, other)))


def preprocess(module, raw):
    inputs = [image.clone() for image in raw]
    if 'Seg' in type(module).__name__:
        from distill_cases import seg_samples

        return module({'inputs': inputs, 'data_samples': seg_samples(len(inputs), (32, 32))}, True)['inputs']
    return module({'inputs': inputs}, False)['inputs']


@pytest.fixture
def raw():
    return list(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(('student', 'teacher'), list(itertools.product(STYLES, STYLES)))
def test_equals_the_teachers_own(raw, student, teacher):
    own, other = preprocessor(student), preprocessor(teacher)
    bridge = bridge_of(own, other)
    assert (bridge is not None) == (student != teacher)
    expected = preprocess(other, raw).float()
    actual = preprocess(own, raw).float()
    actual = actual if bridge is None else bridge(actual)
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_segmenter_to_detector(raw):
    own, other = preprocessor('imagenet', 'mmseg'), preprocessor('caffe')
    bridged = bridge_of(own, other)(preprocess(own, raw))
    assert torch.allclose(bridged, preprocess(other, raw), atol=1e-4)


def test_same_normalisation_in_another_package():
    assert bridge_of(preprocessor('imagenet'), preprocessor('imagenet', 'mmseg')) is None


def test_single_value_statistics(raw):
    grey = MODELS.build({'type': 'mmengine.ImgDataPreprocessor', 'mean': [128.0], 'std': [64.0]})
    other = preprocessor('imagenet')
    bridge = bridge_of(grey, other)
    assert len(bridge.scale) == len(bridge.shift) == 3
    own = (torch.stack([image.float() for image in raw]) - 128) / 64
    assert torch.allclose(bridge(own), preprocess(other, raw), atol=1e-4)


def test_inputs_are_not_changed(raw):
    x = preprocess(preprocessor('caffe'), raw)
    before = x.clone()
    bridge_of(preprocessor('caffe'), preprocessor('imagenet'))(x)
    assert torch.equal(x, before)
    assert not torch.equal(x, F.relu(x))
