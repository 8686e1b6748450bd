"""Models that need torchvision or timm: these run in the environment py311-torchvision."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import L2, build, det_samples, distilled, images, seg_samples, total
from mmengine.hub import get_config
from mmengine.structures import InstanceData


def step(student: dict, teacher: dict, tap: str, samples: list, scope: str) -> None:
    """One step of a distilled student, each of whose parameters gets a gradient or is frozen."""
    config = distilled(
        {'model': student}, {'model': teacher, 'allow_random': True}, {'kd': {'student': tap, 'loss': L2}}
    )
    model = build(config['model'], scope).train()
    losses = model.loss(images(2), samples)
    assert losses['distill.loss_kd'] > 0
    total(losses).backward()
    assert all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad)


def crowddet(width: int) -> dict:
    model = get_config('mmdet::crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py').model
    model.backbone.update(depth=18, base_channels=width, stem_channels=width, frozen_stages=-1, init_cfg=None)
    model.neck.update(in_channels=[width, 2 * width, 4 * width, 8 * width], out_channels=16)
    model.data_preprocessor.batch_augments = None
    model.rpn_head.update(in_channels=16, feat_channels=16)
    model.roi_head.bbox_roi_extractor.out_channels = 16
    model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16)
    return {**model.to_dict(), '_scope_': 'mmdet'}


def test_crowddet():
    pytest.importorskip('torchvision', exc_type=(ImportError, RuntimeError))
    samples = det_samples(2)
    for sample in samples:  # the assigner of mmdet needs two people in a picture
        boxes = torch.tensor([[8.0, 8.0, 40.0, 44.0], [16.0, 8.0, 44.0, 48.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.zeros(2, dtype=torch.long))
    step(crowddet(8), crowddet(16), 'neck', samples, 'mmdet')


def timm(name: str, channels: list[int]) -> dict:
    model = copy.deepcopy(tiny_configs.segmenter(Path('.'))['model'])
    model['backbone'] = {'type': 'TIMMBackbone', 'model_name': name, 'features_only': True, 'pretrained': False}
    model['decode_head'].update(in_channels=channels[-1], in_index=len(channels) - 1)
    return {**model, '_scope_': 'mmseg'}


def test_timm_backbones():
    pytest.importorskip('timm')
    student = timm('mobilenetv3_small_050', [16, 8, 16, 24, 288])
    step(student, timm('resnet10t', [64, 64, 128, 256, 512]), 'backbone', seg_samples(2), 'mmseg')
