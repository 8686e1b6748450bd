"""The demo's configs: plain mmdet and mmseg, on the classes that the generator draws, teacher larger than student."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from scenes import DET_METAINFO, SEG_METAINFO

CONFIGS = Path(__file__).parents[2] / 'configs/demo'
METAINFO = {'det': DET_METAINFO, 'seg': SEG_METAINFO}


def load(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


def loaders(config):
    return [config[key] for key in ('train_dataloader', 'val_dataloader', 'test_dataloader')]


@pytest.mark.parametrize('role', ['teacher', 'student'])
@pytest.mark.parametrize('task', ['det', 'seg'])
def test_classes_are_those_of_the_generator(task, role):
    config = load(f'{task}_{role}')
    expected = METAINFO[task]
    for loader in loaders(config):
        metainfo = loader.dataset.metainfo
        assert tuple(metainfo['classes']) == tuple(expected['classes'])
        assert [tuple(colour) for colour in metainfo['palette']] == [tuple(colour) for colour in expected['palette']]
    head = config.model.bbox_head if task == 'det' else config.model.decode_head
    assert head.num_classes == len(expected['classes'])


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_schedule_ends_with_the_training(task):
    for role in ('teacher', 'student'):
        config = load(f'{task}_{role}')
        end = config.train_cfg.get('max_epochs') or config.train_cfg.get('max_iters')
        assert config.param_scheduler[-1].T_max == config.param_scheduler[-1].end == end


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_teacher_is_several_times_as_large(task):
    sizes = {}
    for role in ('teacher', 'student'):
        config = load(f'{task}_{role}')
        init_default_scope(config.default_scope)
        sizes[role] = sum(parameter.numel() for parameter in MODELS.build(config.model).parameters())
    assert sizes['teacher'] > 4 * sizes['student']


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_student_takes_a_step_and_is_evaluated(task, scenes_root, tmp_path):
    config = load(f'{task}_student')
    for loader in loaders(config):
        loader.dataset.data_root = f'{scenes_root}/'
    if task == 'det':
        config.val_evaluator.ann_file = config.test_evaluator.ann_file = str(
            scenes_root / 'annotations/instances_val2017.json'
        )
        config.train_cfg.max_epochs = config.train_cfg.val_interval = 1
        # After one step nothing is above the usual threshold, and without detections there is no AP.
        config.model.test_cfg.score_thr = 0.0
    else:
        config.model.data_preprocessor.size = (64, 64)
        config.train_cfg.max_iters = config.train_cfg.val_interval = 1
    config.train_dataloader.batch_size = 8
    config.work_dir = str(tmp_path)
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.iter == 1
    metric = {'det': 'val/coco/bbox_mAP', 'seg': 'val/mIoU'}[task]
    assert runner.message_hub.get_scalar(metric).current() >= 0
