"""The configs that other tests stand on train and evaluate in plain mmdet and mmseg."""

from __future__ import annotations

import math

import pytest
from mmengine.config import Config
from mmengine.runner import Runner


def train(path):
    runner = Runner.from_cfg(Config.fromfile(path))
    runner.train()
    return runner


@pytest.mark.parametrize('options', [{'head': 'retina'}, {'head': 'gfl', 'width': 16, 'channels': 24, 'levels': 4}])
def test_detector_trains_and_evaluates(det_config, options):
    runner = train(det_config(**options))
    assert runner.iter == 2
    assert 0 <= runner.message_hub.get_scalar('val/coco/bbox_mAP').current() <= 1
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())


def test_segmenter_trains_and_evaluates(seg_config):
    runner = train(seg_config())
    assert runner.iter == 2
    assert 0 < runner.message_hub.get_scalar('val/mIoU').current() <= 100
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())
