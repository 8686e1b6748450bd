"""Configs of models small enough to train for some steps in a test: plain mmdet and mmseg, nothing of ours.

They are functions rather than files so that a test can ask for another width, head or number of levels; the
fixtures ``det_config`` and ``seg_config`` write them as config files.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from scenes import CITY, DET_METAINFO, SEG_METAINFO

MEAN_STD: dict[str, Any] = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], 'bgr_to_rgb': True}
BN: dict[str, Any] = {'type': 'BN', 'requires_grad': True}


def detector(
    root: Path, head: str = 'retina', width: int = 8, channels: int = 16, levels: int = 3, size: int = 64
) -> dict[str, Any]:
    """Returns a config on the COCO layout below ``root``: one epoch of two iterations, then one evaluation.

    Args:
        root: Folder written by ``write_scenes``.
        head: 'retina' or 'gfl'.
        width: Base channels of the ResNet-18.
        channels: Channels of FPN and head.
        levels: FPN levels, strides from 8 on.
        size: Width and height of the pictures.
    """
    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'LoadAnnotations', 'with_bbox': True},
        {'type': 'Resize', 'scale': (size, size), 'keep_ratio': True},
    ]
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pipeline.append({'type': 'PackDetInputs', 'meta_keys': keys})
    train = _loader('mmdet.CocoDataset', root, {'img': 'train2017/'}, pipeline, 4)
    train['dataset'].update({'ann_file': 'annotations/instances_train2017.json', 'metainfo': DET_METAINFO})
    val = _loader('mmdet.CocoDataset', root, {'img': 'val2017/'}, pipeline, 2)
    val['dataset'].update(
        {'ann_file': 'annotations/instances_val2017.json', 'metainfo': DET_METAINFO, 'test_mode': True}
    )
    val['sampler']['shuffle'] = False
    evaluator = {
        'type': 'CocoMetric',
        'ann_file': str(root / 'annotations/instances_val2017.json'),
        'metric': 'bbox',
    }
    model = {
        'type': {'retina': 'RetinaNet', 'gfl': 'GFL'}[head],
        'data_preprocessor': {'type': 'DetDataPreprocessor', 'pad_size_divisor': 32, **MEAN_STD},
        'backbone': {**_resnet('ResNet', width), 'out_indices': (1, 2, 3)},
        'neck': {
            'type': 'FPN',
            'in_channels': [2 * width, 4 * width, 8 * width],
            'out_channels': channels,
            'num_outs': levels,
            'norm_cfg': BN,
        },
        'bbox_head': _dense_head(head, channels, [8 * 2**level for level in range(levels)]),
        'train_cfg': {
            'assigner': {'type': 'ATSSAssigner', 'topk': 9},
            'allowed_border': -1,
            'pos_weight': -1,
            'debug': False,
        },
        'test_cfg': {
            'nms_pre': 50,
            'min_bbox_size': 0,
            'score_thr': 0.01,
            'nms': {'type': 'nms', 'iou_threshold': 0.6},
            'max_per_img': 10,
        },
    }
    return {
        '_base_': ['mmdet::_base_/default_runtime.py'],
        'model': model,
        'train_dataloader': train,
        'val_dataloader': val,
        'test_dataloader': val,
        'val_evaluator': evaluator,
        'test_evaluator': evaluator,
        'train_cfg': {'type': 'EpochBasedTrainLoop', 'max_epochs': 1, 'val_interval': 1},
        **_schedule(),
    }


def segmenter(root: Path, width: int = 8, channels: int = 16, size: int = 64) -> dict[str, Any]:
    """Returns a PSPNet config on the Cityscapes layout below ``root``: two iterations, then one evaluation.

    Args:
        root: Folder written by ``write_scenes``.
        width: Base channels of the ResNetV1c-18.
        channels: Channels of the head.
        size: Width and height of the pictures.
    """
    load = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}]
    suffixes = {'img_suffix': '_leftImg8bit.png', 'seg_map_suffix': '_gtFine_labelTrainIds.png'}
    loaders = {}
    for split in ('train', 'val'):
        prefix = {'img_path': f'leftImg8bit/{split}/{CITY}', 'seg_map_path': f'gtFine/{split}/{CITY}'}
        pipeline = [*load, {'type': 'PackSegInputs'}]
        loaders[split] = _loader('mmseg.BaseSegDataset', root, prefix, pipeline, {'train': 4, 'val': 1}[split])
        loaders[split]['dataset'].update({'metainfo': SEG_METAINFO, **suffixes})
    loaders['train']['sampler'] = {'type': 'InfiniteSampler', 'shuffle': True}
    loaders['val']['sampler']['shuffle'] = False
    model = {
        'type': 'EncoderDecoder',
        'data_preprocessor': {
            'type': 'SegDataPreProcessor',
            'pad_val': 0,
            'seg_pad_val': 255,
            'size': (size, size),
            **MEAN_STD,
        },
        'backbone': {
            **_resnet('ResNetV1c', width),
            'out_indices': (0, 1, 2, 3),
            'strides': (1, 2, 1, 1),
            'dilations': (1, 1, 2, 4),
            'contract_dilation': True,
        },
        'decode_head': {
            'type': 'PSPHead',
            'in_channels': 8 * width,
            'in_index': 3,
            'channels': channels,
            'pool_scales': (1, 2),
            'dropout_ratio': 0.1,
            'num_classes': len(SEG_METAINFO['classes']),
            'norm_cfg': BN,
            'align_corners': False,
            'loss_decode': {'type': 'CrossEntropyLoss', 'use_sigmoid': False, 'loss_weight': 1.0},
        },
        'train_cfg': {},
        'test_cfg': {'mode': 'whole'},
    }
    evaluator = {'type': 'IoUMetric', 'iou_metrics': ['mIoU']}
    return {
        '_base_': ['mmseg::_base_/default_runtime.py'],
        'model': model,
        'train_dataloader': loaders['train'],
        'val_dataloader': loaders['val'],
        'test_dataloader': loaders['val'],
        'val_evaluator': evaluator,
        'test_evaluator': evaluator,
        'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 2, 'val_interval': 2},
        **_schedule(),
    }


def write(path: Path, config: dict[str, Any]) -> Path:
    """Writes a config as a Python file, with a work folder beside it; returns the path."""
    config = {
        **config,
        'work_dir': str(path.parent / f'{path.stem}_work'),
        # mmengine names a run by the second; two runs of one name would share their log and default scope.
        'experiment_name': f'{path.stem}_{uuid.uuid4().hex}',
    }
    path.write_text(source(config))
    return path


def source(config: dict[str, Any]) -> str:
    """Returns a config as Python."""
    return '\n'.join(f'{key} = {value!r}' for key, value in config.items()) + '\n'


def _schedule() -> dict[str, Any]:
    return {
        'val_cfg': {'type': 'ValLoop'},
        'test_cfg': {'type': 'TestLoop'},
        'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.01, 'momentum': 0.9}},
        'randomness': {'seed': 0},
    }


def _loader(dataset: str, root: Path, prefix: dict[str, str], pipeline: list[Any], batch: int) -> dict[str, Any]:
    return {
        'batch_size': batch,
        'num_workers': 0,
        'sampler': {'type': 'DefaultSampler', 'shuffle': True},
        'dataset': {'type': dataset, 'data_root': f'{root}/', 'data_prefix': prefix, 'pipeline': pipeline},
    }


def _resnet(kind: str, width: int) -> dict[str, Any]:
    return {
        'type': kind,
        'depth': 18,
        'base_channels': width,
        'stem_channels': width,
        'num_stages': 4,
        'norm_cfg': BN,
        'norm_eval': False,
        'style': 'pytorch',
    }


def _dense_head(head: str, channels: int, strides: list[int]) -> dict[str, Any]:
    shared = {
        'num_classes': len(DET_METAINFO['classes']),
        'in_channels': channels,
        'feat_channels': channels,
        'stacked_convs': 1,
        'norm_cfg': BN,
        'anchor_generator': {
            'type': 'AnchorGenerator',
            'ratios': [1.0],
            'octave_base_scale': 4,
            'scales_per_octave': 1,
            'strides': strides,
        },
    }
    if head == 'gfl':
        return {
            **shared,
            'type': 'GFLHead',
            'reg_max': 8,
            'loss_cls': {'type': 'QualityFocalLoss', 'use_sigmoid': True, 'beta': 2.0, 'loss_weight': 1.0},
            'loss_bbox': {'type': 'GIoULoss', 'loss_weight': 2.0},
            'loss_dfl': {'type': 'DistributionFocalLoss', 'loss_weight': 0.25},
        }
    return {
        **shared,
        'type': 'RetinaHead',
        'bbox_coder': {'type': 'DeltaXYWHBBoxCoder'},
        'loss_cls': {'type': 'FocalLoss', 'use_sigmoid': True, 'gamma': 2.0, 'alpha': 0.25, 'loss_weight': 1.0},
        'loss_bbox': {'type': 'L1Loss', 'loss_weight': 1.0},
    }
