"""The config that distils a backbone from a teacher on pictures without labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from freekd_mm.checks import check_least
from freekd_mm.datasets.unlabelled import find_pictures
from freekd_mm.runtime.config import build_empty, find_model, load_config
from freekd_mm.runtime.foreign import LIBRARIES
from freekd_mm.wizard.places import nearest_level, probe_built

#: Of the level of a neck that is compared: near to the patch of most encoders.
STRIDE = 16


def pretrain_source(
    student: str,
    folder: str | os.PathLike | Sequence[str | os.PathLike],
    teacher: dict[str, Any],
    neck: bool,
    epochs: int,
    size: int,
    batch_size: int,
) -> str:
    """Returns the config as text; see :func:`freekd_mm.api.pretrain`."""
    for name, number, least in (('epochs', epochs, 1), ('size', size, 2 * STRIDE), ('batch_size', batch_size, 1)):
        check_least(name, number, least)
    pictures = find_pictures(folder)
    cfg = load_config(student)
    model, scope = find_model(cfg)
    scope = scope or getattr(model.get('type'), '__module__', 'mmdet').split('.')[0]  # of a pure Python config
    if 'backbone' not in model or (neck and not model.get('neck')):
        part = 'neck' if 'backbone' in model else 'backbone'
        raise ValueError(f'{student} should be a model with a {part}, but {model.get("type")} has {", ".join(model)}')
    given = model.get('data_preprocessor') or {}
    statistics = {key: given[key] for key in ('mean', 'std', 'bgr_to_rgb') if key in given}
    encoder: dict[str, Any] = {
        'type': 'freekd_mm.FeatureEncoder',
        'backbone': model['backbone'],
        'data_preprocessor': {'type': 'mmengine.ImgDataPreprocessor', 'pad_size_divisor': 32, **statistics},
    }
    tap = 'backbone' if any(library in teacher for library in LIBRARIES) else 'backbone[-1:]'
    loss = {'type': 'freekd_mm.FeatureMSELoss'}
    distill = {'backbone': {'student': 'backbone[-1:]', 'teacher': tap, 'loss': loss}}
    if neck:
        encoder['neck'] = model['neck']
        probed = probe_built(build_empty({'model': encoder, 'default_scope': scope}), 'student', (size, size), 'neck')
        level = nearest_level(probed.shapes, size / STRIDE)
        distill['neck'] = {'student': f'neck[{level}]', 'teacher': tap, 'loss': loss}
    package = 'Seg' if scope == 'mmseg' else 'Det'
    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'RandomResize', 'scale': (2 * size, 2 * size), 'ratio_range': (0.5, 1.0), 'keep_ratio': True},
        {'type': 'RandomCrop', 'crop_size': (size, size)},
        {'type': 'RandomFlip', 'prob': 0.5},
        {'type': f'Pack{package}Inputs', 'meta_keys': ('img_path', 'ori_shape', 'img_shape')},
    ]
    places = [folder] if isinstance(folder, (str, os.PathLike)) else folder
    config = {
        'default_scope': scope,
        'env_cfg': {},  # mmengine 0.8 needs it
        **({'custom_imports': cfg.custom_imports} if 'custom_imports' in cfg else {}),
        'model': {
            'type': 'freekd_mm.DistilledModel',
            'architecture': encoder,
            'teacher': teacher,
            'distill': distill,
            'probe_size': (size, size),
        },
        'train_dataloader': {
            'batch_size': min(batch_size, len(pictures)),
            'num_workers': 2,
            'persistent_workers': True,
            'drop_last': True,
            'sampler': {'type': 'DefaultSampler', 'shuffle': True},
            'dataset': {
                'type': 'freekd_mm.ImageFolder',
                'folder': [os.path.abspath(place) for place in places],
                'pipeline': pipeline,
            },
        },
        'train_cfg': {'type': 'EpochBasedTrainLoop', 'max_epochs': epochs},
        'optim_wrapper': {
            'type': 'OptimWrapper',
            'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.05},
            'clip_grad': {'max_norm': 1.0},
        },
        'param_scheduler': [
            {'type': 'LinearLR', 'start_factor': 0.01, 'by_epoch': False, 'begin': 0, 'end': 100},
            {'type': 'CosineAnnealingLR', 'T_max': epochs, 'end': epochs, 'convert_to_iter_based': True},
        ],
        'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1, 'max_keep_ckpts': 2}},
    }
    return f'# Distils a backbone on pictures without labels; edit freely.\n{Config(config).pretty_text}'
