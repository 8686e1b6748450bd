"""Killed and resumed, a run ends where an uninterrupted one does; its checkpoints are the student's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import CWD, build, differing, distilled, save_weights, train
from mmengine.hooks import Hook
from mmengine.runner import load_checkpoint

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.compat.versions import resumed_loop_walks
from freekd_mm.runtime.model import student_state_dict


class KilledError(Exception):
    """The run was killed."""


class Kill(Hook):
    """Ends a run behind an iteration, its checkpoint written."""

    def __init__(self, iterations):
        self.iterations = iterations

    def after_train_epoch(self, runner):
        if runner._train_loop.__class__.__name__ == 'EpochBasedTrainLoop' and runner.iter >= self.iterations:
            raise KilledError

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner._train_loop.__class__.__name__ == 'IterBasedTrainLoop' and runner.iter + 1 == self.iterations:
            raise KilledError


def detector(root):
    """Epochs; two teachers, random masks, a schedule, EMA and a warm-up."""
    config = tiny_configs.detector(root)
    teacher = tiny_configs.detector(root, head='gfl', width=16, channels=24)['model']
    connector = {'type': 'mmrazor.MGDConnector', 'student_channels': 16, 'teacher_channels': 24}
    mgd = {'student': 'neck', 'connector': connector, 'loss': {'type': 'mmrazor.MGDLoss', 'alpha_mgd': 1e-3}}
    config = distilled(config, {'model': teacher}, {'mgd': mgd, 'cwd': {'student': 'neck', 'loss': CWD}})
    config['model']['distill']['second'] = {**config['model']['distill']['cwd'], 'of': 'second'}
    config['train_cfg'] = {'type': 'EpochBasedTrainLoop', 'max_epochs': 2, 'val_interval': 5}
    config['custom_hooks'] = [
        {'type': 'EMAHook', 'momentum': 0.1},
        {'type': 'freekd_mm.DistillScheduleHook', 'warmup': 0.25, 'decay': 'cosine'},
    ]
    config['param_scheduler'] = [{'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'begin': 0, 'end': 3}]
    scope, plain = 'mmdet', tiny_configs.detector(root)['model']
    return config, teacher, scope, plain


def segmenter(root):
    """Iterations; no dropout, whose random state mmengine does not restore."""
    config = tiny_configs.segmenter(root)
    config['model']['decode_head']['dropout_ratio'] = 0
    plain = dict(config['model'])
    teacher = tiny_configs.segmenter(root, width=16)['model']
    config = distilled(config, {'model': teacher}, {'cwd': {'student': 'backbone[3]', 'loss': CWD}})
    config['train_cfg'] = {'type': 'IterBasedTrainLoop', 'max_iters': 4, 'val_interval': 5}
    hook = {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 2}
    config['default_hooks'] = {'checkpoint': hook}
    return config, teacher, 'mmseg', plain


CASES = {'detector': (detector, 'epoch_2.pth'), 'segmenter': (segmenter, 'iter_4.pth')}


@dataclass
class Runs:
    """A run of 4 iterations, and one of 2 + 2 with a kill between them."""

    folder: Path
    files: dict
    plain: dict
    scope: str

    @property
    def log(self) -> Path:
        """Folder of the log of the uninterrupted run."""
        return next(path for path in (self.folder / 'whole').iterdir() if path.is_dir())

    def build(self):
        """Builds the plain student from its own config."""
        return build(self.plain, self.scope)


@pytest.fixture(scope='module', params=CASES)
def runs(request, scenes_root, tmp_path_factory):
    make, last = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    config, teacher, scope, plain = make(scenes_root)
    config['model']['teacher']['checkpoint'] = str(save_weights(teacher, folder / 'teacher.pth', scope))
    if request.param == 'detector':
        second = {'name': 'second', 'model': teacher, 'dtype': 'bf16'}
        second['checkpoint'] = str(save_weights(teacher, folder / 'second.pth', scope, seed=2))
        config['model']['teacher'] = [config['model']['teacher'], second]
    config['optim_wrapper'] = {'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 1e-3}}
    config.setdefault('default_hooks', {})['logger'] = {'type': 'LoggerHook', 'interval': 1}
    path = tiny_configs.write(folder / 'distill.py', config)
    files = {}
    for name in ('whole', 'parts'):
        settings = {'work_dir': str(folder / name), 'experiment_name': f'{folder.name}_{name}'}
        if name == 'parts':
            with pytest.raises(KilledError):
                train(path, Kill(2), **settings)
            settings = {**settings, 'experiment_name': f'{folder.name}_resumed', 'resume': True}
        runner = train(path, **settings)
        assert runner.iter == 4
        files[name] = load_checkpoint_file(folder / name / last)
    return Runs(folder, files, plain, scope)


def tensors(value, path=''):
    """Returns all numbers and tensors in nested containers, by path."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in tensors(item, f'{path}/{key}').items()}
    if isinstance(value, (list, tuple)):
        return tensors(dict(enumerate(value)), path)
    if isinstance(value, (int, float)):
        value = torch.tensor(value)
    return {path: value} if torch.is_tensor(value) else {}


def test_resume_is_exact(runs):
    if runs.scope == 'mmseg' and not resumed_loop_walks():
        pytest.skip("mmengine's own resume of iterations starts with the first batch before 0.10.3")
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        whole, parts = (tensors(runs.files[name].get(part, {})) for name in ('whole', 'parts'))
        assert not differing(whole, parts), part
    # The model's own half of the file is the other one with EMA. The last factor of the cosine is 0: no step.
    steps = [
        int(runs.files['parts'].get(part, {}).get(f'{prefix}distillation._extra_state', [0])[0])
        for part, prefix in (('state_dict', ''), ('ema_state_dict', 'module.'))
    ]
    assert max(steps) == (3 if runs.scope == 'mmdet' else 4)


def test_no_weight_of_the_teacher_is_in_the_file(runs):
    file, model = runs.files['whole'], runs.build()
    state = student_state_dict(file['state_dict'])
    assert sorted(state) == sorted(model.state_dict())
    extra = [key for key in file['state_dict'] if key not in state and not key.endswith('_extra_state')]
    assert extra
    assert all(key.startswith('distillation.entries.') for key in extra)
    in_optimizer = sum(len(group['params']) for group in file['optimizer']['param_groups'])
    assert in_optimizer == len(list(model.parameters())) + len(extra)
    teacher = load_checkpoint_file(runs.folder / 'teacher.pth')['state_dict']
    shapes = {tuple(value.shape) for value in teacher.values()}
    shapes -= {tuple(value.shape) for value in file['state_dict'].values()}
    assert shapes
    assert not shapes & {tuple(value.shape) for value in tensors(file).values()}


def test_plain_package_loads_the_checkpoint(runs):
    """With the student's own config, by mmengine's loader."""
    model = runs.build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_checkpoint(model, (runs.folder / 'whole' / 'last_checkpoint').read_text(), map_location='cpu')
    expected = student_state_dict(runs.files['whole']['state_dict'])
    assert not differing(dict(model.state_dict()), expected)
    assert differing(before, expected)


def test_log_shows_the_table_once_and_every_level(runs):
    log = next(runs.log.glob('*.log')).read_text()
    assert log.count('distillation: teacher ') == 1
    assert 'the student is' in log
    assert f'{runs.folder / "teacher.pth"} (100% of' in log
    scalars = [json.loads(line) for line in (runs.log / 'vis_data' / 'scalars.json').read_text().splitlines()]
    levels = [f'distill.cwd.level{level}' for level in range(3 if runs.scope == 'mmdet' else 1)]
    for line in scalars:
        if 'loss' in line:
            assert line['distill.loss_cwd'] > 0
            active = line.get('distill.scale', 1) > 0  # the cosine ends at 0
            assert all((line[level] > 0) == active for level in levels)
            assert ('distill.scale' in line) == (runs.scope == 'mmdet')
