"""With all weights zero the training is bit for bit the plain training; with others the student draws the same."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import tiny_configs
import torch
from distill_cases import CWD, differing, distilled, student_weights, train
from mmengine.hooks import Hook

FLIP = {'type': 'RandomFlip', 'prob': 0.5}
OWN = ('loss_', 'decode.')


class Trace(Hook):
    """Keeps the student's losses and all random states of every step."""

    def __init__(self):
        self.losses, self.states = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({key: float(value) for key, value in outputs.items() if key.startswith(OWN)})
        numpy_state = np.random.get_state()[1].tolist()
        self.states.append((torch.get_rng_state().tolist(), numpy_state, random.getstate()))


def mgd(channels_s, channels_t):
    connector = {'type': 'mmrazor.MGDConnector', 'student_channels': channels_s, 'teacher_channels': channels_t}
    return {'connector': connector, 'loss': {'type': 'mmrazor.MGDLoss', 'alpha_mgd': 1e-4}}


def detector(root):
    """Random flips, weight decay, gradient clipping, and a rule at the top that initialises every convolution."""
    config = tiny_configs.detector(root)
    config['train_dataloader']['dataset']['pipeline'].insert(-1, FLIP)
    config['train_cfg'] = {'type': 'EpochBasedTrainLoop', 'max_epochs': 2, 'val_interval': 5}
    config['model']['init_cfg'] = {'type': 'Normal', 'layer': 'Conv2d', 'std': 0.02}
    teacher = tiny_configs.detector(root, head='gfl', width=16, channels=24)['model']
    entries = {'mgd': {'student': 'neck', **mgd(16, 24)}, 'cwd': {'student': 'backbone', 'loss': CWD}}
    return config, teacher, entries


def segmenter(root):
    """The same, with dropout."""
    config = tiny_configs.segmenter(root)
    config['train_dataloader']['dataset']['pipeline'].insert(-1, FLIP)
    config['train_cfg'] = {'type': 'IterBasedTrainLoop', 'max_iters': 4, 'val_interval': 5}
    assert config['model']['decode_head']['dropout_ratio'] > 0
    teacher = tiny_configs.segmenter(root, width=16)['model']
    entries = {
        'mgd': {'student': 'backbone[3]', **mgd(64, 128)},
        'logits': {'student': 'decode_head', 'loss': {'type': 'freekd_mm.FiGKDLoss'}},
    }
    return config, teacher, entries


def run(config, path):
    config = copy.deepcopy(config)
    config['optim_wrapper'] = {
        'type': 'OptimWrapper',
        'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.05},
        'paramwise_cfg': {'norm_decay_mult': 0.0, 'custom_keys': {'backbone': {'lr_mult': 0.1}}},
        'clip_grad': {'max_norm': 1.0},
    }
    config['randomness'] = {'seed': 7}
    config['default_hooks'] = {'checkpoint': None}
    trace = Trace()
    runner = train(tiny_configs.write(path, config), trace)
    assert runner.iter == 4
    return runner, trace


@pytest.fixture(params=[detector, segmenter], ids=['detector', 'segmenter'])
def case(request, scenes_root):
    return request.param(scenes_root)


def test_zero_weights_are_plain_training(case, tmp_path):
    config, teacher, entries = case
    source = {'model': teacher, 'allow_random': True}
    off = {name: {**entry, 'weight': 0.0} for name, entry in entries.items()}
    plain, expected = run(config, tmp_path / 'plain.py')
    zero, actual = run(distilled(config, source, off), tmp_path / 'zero.py')
    assert expected.losses[0]
    assert expected.losses == actual.losses
    assert expected.states == actual.states
    assert not differing(student_weights(plain.model), student_weights(zero.model))
    assert any(key.startswith('distillation.') for key in zero.model.state_dict())

    on, moved = run(distilled(config, source, entries), tmp_path / 'on.py')
    # The same pictures, flips and dropout, though the student is another by now.
    assert expected.states == moved.states
    assert expected.losses[0] == moved.losses[0]
    assert expected.losses[-1] != moved.losses[-1]
    assert differing(student_weights(plain.model), student_weights(on.model))
    names = dict(plain.model.named_parameters())
    groups = [{id(p): g for g in r.optim_wrapper.param_groups for p in g['params']} for r in (plain, on)]
    for name, parameter in on.model.named_parameters():
        if name in names:
            first, second = groups[0][id(names[name])], groups[1][id(parameter)]
            assert (first['lr'], first['weight_decay']) == (second['lr'], second['weight_decay'])
