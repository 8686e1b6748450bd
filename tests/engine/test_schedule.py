"""The weight of distillation over a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_configs
from distill_cases import CWD, L2, Calls, distilled, runner_of
from mmengine.hooks import Hook

from freekd_mm.engine.schedule import DistillScheduleHook


def factors(count=10, per_epoch=2, **options):
    hook = DistillScheduleHook(**options)
    return [hook.factor(index, count, index // per_epoch) for index in range(count)]


def test_constant():
    assert factors() == [1.0] * 10


def test_warmup_is_linear_and_never_zero():
    assert factors(warmup=0.4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])


def test_warmup_as_a_share_of_the_training():
    assert factors(6, warmup=0.2) == [0.5, *[1.0] * 5]
    assert factors(5, warmup=0.1) == [1.0] * 5


def test_decay_behind_the_warmup():
    assert factors(4, warmup=0.25, decay='cosine') == pytest.approx([0.5, 1, 0.5, 0])


def test_cosine_decay():
    expected = [0.2 + 0.8 * (1 + math.cos(math.pi * index / 9)) / 2 for index in range(10)]
    assert factors(decay='cosine', end=0.2) == pytest.approx(expected)


def test_stop():
    assert factors(stop_epoch=3) == [1.0] * 6 + [0.0] * 4
    assert factors(stop_epoch=0) == [0.0] * 10


@pytest.mark.parametrize('count', [1, 2])
def test_short_runs(count):
    assert all(0 <= value <= 1 for value in factors(count, warmup=1, decay='cosine'))
    assert all(0 <= value <= 1 for value in factors(count, decay='cosine'))


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        ({'decay': 'cos'}, ValueError, r"decay should be one of .*, but got 'cos'"),
        ({'warmup': 'fast'}, TypeError, r'warmup should be a number'),
        ({'warmup': -1}, ValueError, r'warmup should be at least 0'),
        ({'warmup': 1.5}, ValueError, r'warmup should be a share of the training, at most 1'),
        ({'end': -0.1}, ValueError, r'end should be at least 0'),
        ({'stop_epoch': 2.5}, TypeError, r'stop_epoch should be an integer'),
        ({'stop_epoch': -3}, ValueError, r'stop_epoch should be at least 0'),
    ],
)
def test_options(options, error, message):
    with pytest.raises(error, match=message):
        DistillScheduleHook(**options)


def test_needs_a_distilled_model():
    runner = SimpleNamespace(model=SimpleNamespace())
    with pytest.raises(TypeError, match=r"should run with model=dict\(type='freekd_mm.DistilledModel'"):
        DistillScheduleHook().before_train(runner)


class Scales(Hook):
    """Keeps the factors of all entries and whether the teacher ran, and compares each loss with its factor."""

    def __init__(self):
        self.scales, self.runs = [], []

    def before_run(self, runner):
        self.calls = Calls(runner.model.teacher, 'backbone')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        entries = runner.model.distillation.entries
        self.scales.append(tuple(entries[name].scale for name in entries))
        for name in entries:
            # The terms are before the factor, and all zero where the entry is off.
            terms = sum(float(value) for key, value in outputs.items() if key.startswith(f'distill.{name}.level'))
            assert float(outputs[f'distill.loss_{name}']) == pytest.approx(entries[name].scale * terms, rel=1e-5)
        self.runs.append(self.calls.counts['backbone'])


def run(scenes_root, tmp_path, *hooks, **settings):
    config = tiny_configs.detector(scenes_root)
    teacher = {'model': tiny_configs.detector(scenes_root, width=16)['model'], 'allow_random': True}
    entries = {'cwd': {'student': 'neck', 'loss': CWD}, 'mse': {'student': 'backbone', 'loss': L2}}
    config = distilled(config, teacher, entries)
    config['train_cfg'] = {'type': 'EpochBasedTrainLoop', 'max_epochs': 2, 'val_interval': 5}
    config['default_hooks'] = {'checkpoint': None, 'logger': {'type': 'LoggerHook', 'interval': 1}}
    config['custom_hooks'] = list(hooks)
    runner = runner_of(tiny_configs.write(tmp_path / 'schedule.py', config), **settings)
    scales = Scales()
    runner.register_hook(scales)
    runner.train()
    lines = (Path(runner.log_dir) / 'vis_data' / 'scalars.json').read_text().splitlines()
    return scales, [line for line in map(json.loads, lines) if 'loss' in line]


def test_factor_reaches_the_losses_and_the_log(scenes_root, tmp_path):
    """A factor of zero also stops the teacher's forward pass."""
    hooks = [
        {'type': 'freekd_mm.DistillScheduleHook', 'warmup': 0.25, 'stop_epoch': 1, 'entries': ['cwd']},
        {'type': 'freekd_mm.DistillScheduleHook', 'decay': 'cosine', 'entries': ['mse']},
    ]
    scales, log = run(scenes_root, tmp_path, *hooks)
    cosine = pytest.approx([1.0, 0.75, 0.25, 0.0])
    assert [cwd for cwd, _ in scales.scales] == [0.5, 1.0, 0.0, 0.0]
    assert [mse for _, mse in scales.scales] == cosine
    assert scales.runs == [1, 2, 3, 3]
    assert [line['distill.scale.cwd'] for line in log] == [0.5, 1.0, 0.0, 0.0]
    assert [line['distill.scale.mse'] for line in log] == cosine
    # mmengine would go on to log the last value that there was; what is called a loss it averages over the last lines.
    assert [line['distill.cwd.level0'] > 0 for line in log] == [True, True, False, False]
    assert log[3]['distill.loss_cwd'] < log[2]['distill.loss_cwd'] < log[1]['distill.loss_cwd']
    assert [line['distill.mse.level2'] > 0 for line in log] == [True, True, True, False]


def test_a_training_in_iterations_has_no_epoch_to_stop_at(scenes_root, tmp_path):
    settings = {'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 2, 'val_interval': 5, '_delete_': True}}
    with pytest.raises(ValueError, match='stop_epoch should be None in a training that counts iterations'):
        run(scenes_root, tmp_path, {'type': 'freekd_mm.DistillScheduleHook', 'stop_epoch': 1}, **settings)


def test_unknown_entry(scenes_root, tmp_path):
    with pytest.raises(
        ValueError, match=r"distill entry should be one of 'cwd', 'mse', but got 'cdw'. Did you mean 'cwd'"
    ):
        run(scenes_root, tmp_path, {'type': 'freekd_mm.DistillScheduleHook', 'entries': ['cdw']})


def test_mmrazors_stop_hook(scenes_root, tmp_path):
    scales, _ = run(scenes_root, tmp_path, {'type': 'mmrazor.StopDistillHook', 'stop_epoch': 1})
    assert scales.runs == [1, 2, 2, 2]
