"""A student and a teacher of mmdet with random weights, plain, distilled by us and distilled by mmrazor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from torch import nn

from freekd_mm.log import quiet
from freekd_mm.runtime.config import build_model, load_config, without_pretrained
from speed.loss import save_random_prompt

STUDENT = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
TEACHER = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
LEVELS = 5
CHANNELS = 256
L2 = {'type': 'mmrazor.L2Loss', 'normalize': False, 'div_element': True}


def config_of(name: str, quick: bool) -> ConfigDict:
    """Returns a model's config without pretrained weights; ``quick`` makes the backbone and the head thin."""
    config: Config = load_config(name)
    model = ConfigDict(without_pretrained(config.model))
    if quick:
        stages = [8 * 2**stage for stage in range(4)]
        expansion = 1 if model.backbone.depth < 50 else 4
        model.backbone.update(base_channels=8, stem_channels=8)
        model.neck.update(in_channels=[expansion * width for width in stages], out_channels=16)
        model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=5)
    return model


def build(model: dict, seed: int = 0) -> Any:
    """Builds a model in training mode, in silence: the same weights for the same seed."""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = build_model(copy.deepcopy(model), 'mmdet')
        built.init_weights()
    built.train()
    return built


def distilled(student: dict, teacher: dict, loss: dict, seed: int = 0) -> Any:
    """Builds the student that learns by a loss on its neck; teacher and student have the weights of ``build``."""
    model = {
        'type': 'freekd_mm.DistilledModel',
        'architecture': copy.deepcopy(student),
        'teacher': {'model': copy.deepcopy(teacher), 'allow_random': True},
        'distill': {'kd': {'student': 'neck', 'loss': loss}},
    }
    built = build(model, seed)
    built.teacher.load_state_dict(build(teacher, seed + 1).state_dict())
    for entry in built.distillation.entries.values():
        # One step in 50 measures how hard the loss pulls; the others are what a training takes its time from.
        entry.pull.off = True
    return built


def by_mmrazor(student: dict, teacher: dict, loss: dict, seed: int = 0) -> Any:
    """Builds the same with an L2 in mmrazor's terms: its algorithm, its recorders, one loss per level."""
    recorders = {'neck': {'type': 'ModuleOutputs', 'source': 'neck'}}
    mappings = {
        f'loss_{level}': {
            's_feature': {'recorder': 'neck', 'from_student': True, 'data_idx': level},
            't_feature': {'recorder': 'neck', 'from_student': False, 'data_idx': level},
        }
        for level in range(LEVELS)
    }
    model = {
        'type': 'mmrazor.SingleTeacherDistill',
        'architecture': {'_scope_': 'mmdet', **copy.deepcopy(student)},
        'teacher': {'_scope_': 'mmdet', **copy.deepcopy(teacher)},
        'teacher_trainable': False,
        'distiller': {
            '_scope_': 'mmrazor',
            'type': 'ConfigurableDistiller',
            'student_recorders': recorders,
            'teacher_recorders': copy.deepcopy(recorders),
            'distill_losses': {name: dict(loss) for name in mappings},
            'loss_forward_mappings': mappings,
        },
    }
    built = build(model, seed)
    built.student.load_state_dict(build(student, seed).state_dict())
    built.teacher.load_state_dict(build(teacher, seed + 1).state_dict())
    return built


def freekd(folder: Path, channels: int, num_tokens: int = 2) -> dict:
    """Returns the config of FreeKD's loss in paper mode, with masks of a random prompt and the relation."""
    file = folder / f'prompt{num_tokens}.pth'
    save_random_prompt(file, LEVELS, num_tokens, channels)
    loss = {'type': 'freekd_mm.FreeKDLoss', 'mode': 'paper', 'channels': channels}
    return {**loss, 'prompt': str(file)}


def batch_of(count: int, size: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Returns raw images of noise with some boxes each, as a data loader gives them."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(seed)
    images, samples = [], []
    height, width = size
    for index in range(count):
        images.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator))
        meta = {'img_shape': (height, width), 'ori_shape': (height, width), 'pad_shape': (height, width)}
        sample = DetDataSample(metainfo={**meta, 'img_id': index, 'scale_factor': (1.0, 1.0)})
        corners = torch.rand(8, 4, generator=generator).view(8, 2, 2).sort(1).values
        boxes = (corners * torch.tensor([width, height])).flatten(1) + torch.tensor([0.0, 0.0, 4.0, 4.0])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.arange(8) % 5)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return {'inputs': images, 'data_samples': samples}


def count_trained(model: nn.Module) -> int:
    """Returns the number of values that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
