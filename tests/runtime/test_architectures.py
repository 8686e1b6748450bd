"""Any student with any teacher: other channels, strides, level counts, CNN and transformer."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny_configs
from distill_cases import CWD, L2, build, det_samples, distilled, images, seg_samples, total

DETECTOR = tiny_configs.detector(Path('.'))['model']
SEGMENTER = tiny_configs.segmenter(Path('.'))['model']
LN = {'type': 'LN', 'requires_grad': True}


def detector(**changes):
    return {**copy.deepcopy(DETECTOR), '_scope_': 'mmdet', **changes}


def pyramid(levels, channels=24, width=16):
    model = tiny_configs.detector(Path('.'), width=width, channels=channels, levels=levels)['model']
    return {**model, '_scope_': 'mmdet'}


def swin():
    """Strides 8, 16, 32, as the ResNet's."""
    backbone = {
        'type': 'SwinTransformer',
        'embed_dims': 8,
        'depths': [1, 1, 1, 1],
        'num_heads': [1, 2, 2, 2],
        'window_size': 4,
        'out_indices': (1, 2, 3),
    }
    neck = {'type': 'FPN', 'in_channels': [16, 32, 64], 'out_channels': 16, 'num_outs': 3}
    return detector(backbone=backbone, neck=neck)


def segformer():
    """Strides 4, 8, 16, 32."""
    backbone = {
        'type': 'MixVisionTransformer',
        'in_channels': 3,
        'embed_dims': 8,
        'num_stages': 4,
        'num_layers': [1, 1, 1, 1],
        'num_heads': [1, 2, 2, 2],
        'patch_sizes': [7, 3, 3, 3],
        'sr_ratios': [8, 4, 2, 1],
        'out_indices': (0, 1, 2, 3),
        'mlp_ratio': 2,
    }
    head = {
        'type': 'SegformerHead',
        'in_channels': [8, 16, 16, 16],
        'in_index': [0, 1, 2, 3],
        'channels': 16,
        'num_classes': SEGMENTER['decode_head']['num_classes'],
        'norm_cfg': tiny_configs.BN,
    }
    return {**copy.deepcopy(SEGMENTER), '_scope_': 'mmseg', 'backbone': backbone, 'decode_head': head}


def vit(with_cls_token=True):
    backbone = {
        'type': 'VisionTransformer',
        'img_size': (64, 64),
        'patch_size': 16,
        'embed_dims': 16,
        'num_layers': 2,
        'num_heads': 2,
        'mlp_ratio': 2,
        'out_indices': (1,),
        'with_cls_token': with_cls_token,
        'norm_cfg': LN,
    }
    head = {
        'type': 'FCNHead',
        'in_channels': 16,
        'in_index': 0,
        'channels': 8,
        'num_convs': 1,
        'num_classes': SEGMENTER['decode_head']['num_classes'],
        'norm_cfg': tiny_configs.BN,
    }
    return {**copy.deepcopy(SEGMENTER), '_scope_': 'mmseg', 'backbone': backbone, 'decode_head': head}


def two_stage():
    """A teacher whose second stage reads proposals; only its neck is needed."""
    from mmengine.hub import get_config

    model = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    model.backbone.update(depth=18, base_channels=8, stem_channels=8, norm_eval=False, init_cfg=None)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    model.roi_head.bbox_roi_extractor.out_channels = 16
    model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16)
    return {**model.to_dict(), '_scope_': 'mmdet'}


def run(student, teacher, entry, samples, size=(64, 64)):
    """Builds, runs one step on another size than the probe's, and returns the entry's rows and its loss."""
    config = distilled({'model': student}, {'model': teacher, 'allow_random': True}, {'kd': {'loss': L2, **entry}})
    model = build(config['model']).train()
    losses = model.loss(images(2, size), samples(2, size))
    total(losses).backward()
    assert losses['distill.loss_kd'].isfinite()
    assert losses['distill.loss_kd'] > 0
    connector = model.distillation.entry('kd').connector
    assert connector is None or all(parameter.grad is not None for parameter in connector.parameters())
    return [row[-1] for row in model.distillation.entry('kd').rows]


CASES = {
    'channels': (detector, lambda: pyramid(3), {'student': 'neck'}, ['projected 16 -> 24'] * 3),
    'same': (detector, lambda: pyramid(3, 16), {'student': 'neck'}, ['as it is'] * 3),
    'more levels': (detector, lambda: pyramid(5), {'student': 'neck'}, [*['projected 16 -> 24'] * 3, '']),
    'fewer levels': (lambda: pyramid(5, 16, 8), detector, {'student': 'neck'}, [*['as it is'] * 3, '']),
    'strides': (
        detector,
        lambda: pyramid(4),
        {'student': 'neck', 'teacher': 'neck[1:4]'},
        ['projected 16 -> 24, averaged down'] * 3,
    ),
    'stages': (
        detector,
        lambda: pyramid(3),
        {'student': 'backbone[:2]', 'teacher': ['backbone.layer1', 'backbone.layer2']},
        ['upsampled', 'upsampled'],
    ),
    'two stage teacher': (detector, two_stage, {'student': 'neck', 'teacher': 'neck[1:4]'}, ['as it is'] * 3),
    'transformer student': (swin, lambda: pyramid(3), {'student': 'neck'}, ['projected 16 -> 24'] * 3),
    'transformer teacher': (detector, swin, {'student': 'backbone'}, ['as it is'] * 3),
    'tokens of a stage': (
        detector,
        swin,
        {'student': 'backbone.layer2', 'teacher': 'backbone.stages.0.blocks.0'},
        ['projected 16 -> 8, upsampled'],
    ),
}


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('size', [(64, 64), (64, 96)])
def test_detectors(name, size):
    student, teacher, entry, actions = CASES[name]
    assert run(student(), teacher(), entry, det_samples, size) == actions


SEG_CASES = {
    'transformer student': (
        segformer,
        lambda: {**SEGMENTER, '_scope_': 'mmseg'},
        {'student': 'backbone[3]', 'teacher': 'backbone[3]', 'loss': CWD},
        ['projected 16 -> 64, upsampled'],
    ),
    'transformer teacher': (
        lambda: {**SEGMENTER, '_scope_': 'mmseg'},
        segformer,
        {'student': 'backbone[3]', 'teacher': 'backbone[2]', 'loss': CWD},
        ['projected 64 -> 16, averaged down'],
    ),
    'logits': (
        segformer,
        lambda: {**SEGMENTER, '_scope_': 'mmseg'},
        {'student': 'decode_head', 'loss': {'type': 'freekd_mm.FiGKDLoss', 'resize': True}},
        ['as it is'],
    ),
    'tokens with a class token': (
        segformer,
        vit,
        {'student': 'backbone[1]', 'teacher': 'backbone.layers.1'},
        ['averaged down'],
    ),
    'tokens of the student with a class token': (
        vit,
        segformer,
        {'student': 'backbone.layers.0', 'teacher': 'backbone[0]'},
        ['projected 16 -> 8, upsampled'],
    ),
    'tokens': (
        lambda: vit(with_cls_token=False),
        segformer,
        {'student': 'backbone.layers.0', 'teacher': 'backbone[0]'},
        ['projected 16 -> 8, upsampled'],
    ),
}


@pytest.mark.parametrize('name', SEG_CASES)
def test_segmenters(name):
    student, teacher, entry, actions = SEG_CASES[name]
    assert run(student(), teacher(), entry, seg_samples) == actions


def test_levels_that_cannot_be_paired_are_named():
    message = r'the student has 3 levels \(16x8x8, .* and the teacher 2 \(24x1x1, 24x1x1\), and they cannot be paired'
    with pytest.raises(ValueError, match=message):
        run(detector(), pyramid(5), {'student': 'neck', 'teacher': ['neck[3]', 'neck[3]']}, det_samples)


def test_logits_of_other_classes_are_named():
    teacher = pyramid(3)
    teacher['bbox_head'] = {**teacher['bbox_head'], 'num_classes': 80}
    figkd = {'type': 'freekd_mm.FiGKDLoss'}
    with pytest.raises(
        ValueError, match=r'level 0 student and teacher should score the same .* \(2, 6, 8, 8\) and \(2, 80,'
    ):
        run(detector(), teacher, {'student': 'bbox_head[0]', 'loss': figkd}, det_samples)


def test_output_that_is_no_tensor():
    with pytest.raises(TypeError, match=r"tap 'backbone.stages.0' should give tensors, but the module returned a int"):
        run(swin(), pyramid(3), {'student': 'backbone.stages.0', 'teacher': 'backbone.layer2'}, det_samples)


def test_unused_levels_are_in_the_table():
    config = distilled(
        {'model': detector()}, {'model': pyramid(5), 'allow_random': True}, {'kd': {'student': 'neck', 'loss': L2}}
    )
    rows = build(config['model']).distillation.entry('kd').rows
    assert len(rows) == 4
    assert rows[0] == ['kd', 'neck', '24x8x8', 'neck', '16x8x8', 'projected 16 -> 24']
    assert rows[3][1] == '2 level(s) of the teacher not used'
