"""What a user's schedule may bring along: EMA, accumulation, clipping, mixed precision, SyncBN, evaluation, files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import (
    CWD,
    L2,
    Calls,
    build,
    differing,
    distilled,
    images,
    runner_of,
    save_weights,
    student_weights,
    train,
)
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.registry import HOOKS
from torch import nn
from toy_runs import Stop, toy_config

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.compat.versions import remove_prefix
from freekd_mm.engine import training
from freekd_mm.engine.evaluation import evaluate, plain_config

MGD = {
    'student': 'neck',
    'connector': {'type': 'mmrazor.MGDConnector', 'student_channels': 16, 'teacher_channels': 24},
    'loss': {'type': 'mmrazor.MGDLoss', 'alpha_mgd': 1e-4},
}
ENTRIES = {'cwd': {'student': 'neck', 'loss': CWD}, 'mse': {'student': 'backbone', 'loss': L2}, 'mgd': MGD}


def teacher_model():
    return {**tiny_configs.detector(Path('.'), head='gfl', width=16, channels=24)['model'], '_scope_': 'mmdet'}


def detector(root, **changes):
    config = distilled(tiny_configs.detector(root), {'model': teacher_model(), 'allow_random': True}, ENTRIES)
    config['default_hooks'] = {'checkpoint': None}
    config['train_cfg'] = {'type': 'EpochBasedTrainLoop', 'max_epochs': 2, 'val_interval': 5}
    return {**config, **changes}


class Weights(Hook):
    """Keeps copies of the weights of every step."""

    def __init__(self):
        self.steps = []

    def before_train(self, runner):
        self.after_train_iter(runner, 0)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.steps.append({key: value.detach().clone() for key, value in runner.model.named_parameters()})


def wrapper(**options):
    return {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.01}, **options}


def test_accumulation_and_clipping(scenes_root, tmp_path):
    """Connectors move with the student: at every second step, by at most lr * max_norm in all."""
    weights = Weights()
    optim = wrapper(accumulative_counts=2, clip_grad={'max_norm': 0.5})
    path = tiny_configs.write(tmp_path / 'accumulate.py', detector(scenes_root, optim_wrapper=optim))
    train(path, weights)
    assert len(weights.steps) == 5
    assert not differing(weights.steps[0], weights.steps[1])
    assert not differing(weights.steps[2], weights.steps[3])
    for before, after in ((0, 2), (2, 4)):
        first, second = weights.steps[before], weights.steps[after]
        changed = differing(first, second)
        assert any(key.startswith('distillation.') for key in changed)
        assert any(key.startswith('backbone.') for key in changed)
        moved = torch.stack([(first[key] - second[key]).norm() for key in first]).norm()
        assert 0.0049 < moved < 0.0051


def test_amp(scenes_root, tmp_path, monkeypatch):
    """mmengine asks for an accelerator, though its autocast knows the CPU; bfloat16 needs no loss scale."""
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    seen = []

    class Watch(Hook):
        def before_run(self, runner):
            runner.model.neck.register_forward_hook(lambda *args: seen.append(args[-1][0].dtype))

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            losses = {key: value for key, value in outputs.items() if 'distill' in key}
            assert losses
            assert all(value.isfinite() for value in losses.values())

    optim = {'type': 'AmpOptimWrapper', 'dtype': 'bfloat16', 'loss_scale': {'enabled': False}}
    optim['optimizer'] = {'type': 'SGD', 'lr': 0.01}
    runner = train(tiny_configs.write(tmp_path / 'amp.py', detector(scenes_root, optim_wrapper=optim)), Watch())
    assert set(seen[:4]) == {torch.bfloat16}
    assert {parameter.dtype for parameter in runner.model.parameters()} == {torch.float32}


def test_options_of_the_command_are_written_into_the_config(tmp_path, monkeypatch):
    kept = []

    def from_cfg(cfg):
        kept.append(cfg)
        raise Stop

    monkeypatch.setattr(training.Runner, 'from_cfg', from_cfg)
    config = toy_config(tmp_path, auto_scale_lr={'base_batch_size': 16})
    scaled = {**config, 'optim_wrapper': {**config['optim_wrapper'], 'loss_scale': 512.0}}
    for settings, options in ((config, {}), (config, {'amp': True}), (scaled, {'amp': True})):
        with pytest.raises(Stop):
            training.run(Config(settings), **options)
    with pytest.raises(Stop):
        training.run(Config(config), auto_scale_lr=True)
    wrappers = [(cfg.optim_wrapper.type, cfg.optim_wrapper.get('loss_scale')) for cfg in kept]
    plain = ('OptimWrapper', None)
    assert wrappers == [plain, ('AmpOptimWrapper', 'dynamic'), ('AmpOptimWrapper', 512.0), plain]
    assert [cfg.auto_scale_lr.get('enable', False) for cfg in kept] == [False, False, False, True]


@HOOKS.register_module(force=True)
class Evaluated(Hook):
    """Keeps the weights that an evaluation predicts with."""

    weights: dict = {}  # noqa: RUF012

    def before_test_iter(self, runner, batch_idx, data_batch=None):
        Evaluated.weights = {key: value.clone() for key, value in runner.model.state_dict().items()}


def test_ema(scenes_root, tmp_path):
    """The average holds the student and the connectors, shares the teacher, and is what evaluation sees."""
    hooks = [{'type': 'EMAHook', 'ema_type': 'ExponentialMovingAverage', 'momentum': 0.4, 'update_buffers': True}]
    config = detector(scenes_root, custom_hooks=[*hooks, {'type': 'Evaluated'}], default_hooks={})
    runner = train(tiny_configs.write(tmp_path / 'ema.py', config))
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
    assert hook.ema_model.module.teacher is runner.model.teacher
    file = load_checkpoint_file(Path(runner.work_dir) / 'epoch_2.pth')
    # mmengine swaps them in the file, so that everyone loads the average.
    last = {remove_prefix(key, 'module.'): value for key, value in file['ema_state_dict'].items() if key != 'steps'}
    average = hook.ema_model.module.state_dict()
    assert not differing(file['state_dict'], average)
    assert not differing(last, runner.model.state_dict())
    changed = differing(last, average)
    assert any(key.startswith('backbone.') for key in changed)
    assert any(key.startswith('distillation.') for key in changed)
    metrics = evaluate(Config.fromfile(tmp_path / 'ema.py'), str(Path(runner.work_dir) / 'epoch_2.pth'))
    assert metrics['coco/bbox_mAP'] >= 0
    assert not differing(Evaluated.weights, student_weights(hook.ema_model.module))


def test_syncbn(scenes_root):
    """Converting the student converts its connectors, not the teacher; taps go on to record."""
    model = build(detector(scenes_root)['model'])
    norm = {'type': 'mmrazor.ConvModuleConnector', 'in_channel': 16, 'out_channel': 24, 'norm_cfg': {'type': 'BN'}}
    entries = {'cwd': {'student': 'neck', 'loss': CWD, 'connector': norm}}
    model = build({**detector(scenes_root)['model'], 'distill': entries})
    before = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    converted = convert_sync_batchnorm(model, 'torch')
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in converted.modules()) == before
    assert any(isinstance(m, nn.SyncBatchNorm) for m in converted.distillation.modules())
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in converted.teacher.modules())
    from distill_cases import det_samples

    losses = converted.eval().loss(images(), det_samples())
    assert losses['distill.loss_cwd'] > 0
    assert 'distill.loss_cwd' in revert_sync_batchnorm(converted).train().loss(images(), det_samples())


def test_syncbn_config_in_one_process(scenes_root, tmp_path):
    """mmseg's configs ask for it; mmengine takes it back where there is one process."""
    config = tiny_configs.segmenter(scenes_root)
    config['model'] = json.loads(json.dumps(config['model']).replace('"BN"', '"SyncBN"'))
    teacher = json.loads(json.dumps(tiny_configs.segmenter(scenes_root, width=16)['model']).replace('"BN"', '"SyncBN"'))
    entries = {'cwd': {'student': 'backbone[3]', 'loss': CWD}}
    config = distilled(config, {'model': teacher, 'allow_random': True}, entries)
    config['default_hooks'] = {'checkpoint': None}
    runner = train(tiny_configs.write(tmp_path / 'syncbn.py', config))
    assert runner.message_hub.get_scalar('train/distill.loss_cwd').current() > 0


def test_multi_scale(scenes_root, tmp_path):
    """Sizes that change between the steps, and padding."""
    config = detector(scenes_root)
    resize = {'type': 'RandomChoiceResize', 'scales': [(64, 64), (96, 96), (128, 80)], 'keep_ratio': False}
    config['train_dataloader']['dataset']['pipeline'][2] = resize
    config['train_dataloader']['batch_size'] = 2
    config['train_cfg']['max_epochs'] = 1
    sizes = set()

    class Sizes(Hook):
        def before_run(self, runner):
            runner.model.teacher.backbone.register_forward_pre_hook(lambda _, args: sizes.add(args[0].shape[2:]))

    runner = train(tiny_configs.write(tmp_path / 'scales.py', config), Sizes())
    assert len(sizes) > 1
    assert runner.message_hub.get_scalar('train/distill.loss_cwd').current() > 0


def test_distillation_from_segmenter_to_evaluation(scenes_root, tmp_path):
    """The teacher is needed for training, not for testing."""
    config = tiny_configs.segmenter(scenes_root)
    teacher = tiny_configs.segmenter(scenes_root, width=16)['model']
    checkpoint = save_weights(teacher, tmp_path / 'teacher.pth', 'mmseg')
    entries = {'figkd': {'student': 'decode_head', 'loss': {'type': 'freekd_mm.FiGKDLoss'}}}
    config = distilled(config, {'model': teacher, 'checkpoint': str(checkpoint)}, entries)
    config['custom_hooks'] = [{'type': 'freekd_mm.DistillScheduleHook', 'warmup': 0.5}]
    path = tiny_configs.write(tmp_path / 'seg.py', {**config, 'default_hooks': {'checkpoint': {'by_epoch': False}}})
    config = Config.fromfile(path)
    config.default_hooks.checkpoint.update(type='CheckpointHook', interval=2)
    path.write_text(config.pretty_text)
    runner = train(path)
    trained = runner.message_hub.get_scalar('val/mIoU').current()
    checkpoint.unlink()
    config = Config.fromfile(path)
    config.experiment_name = f'{config.experiment_name}_test'
    out = tmp_path / 'metrics.json'
    metrics = evaluate(config, str(Path(runner.work_dir) / 'iter_2.pth'), result=str(out))
    assert metrics['mIoU'] == trained
    result = json.loads(out.read_text())
    assert result['mIoU'] == trained
    assert (Path(result['checkpoint']).name, result['sha256']) == ('iter_2.pth', short_hash(result['checkpoint']))
    assert [json.loads(file.read_text()) for file in Path(config.work_dir).glob('test/*/result.json')] == [result]


def test_plain_config_leaves_the_users_hooks(scenes_root):
    hooks = [{'type': 'EMAHook'}, {'type': 'freekd_mm.DistillScheduleHook'}]
    config = Config(detector(scenes_root, custom_hooks=hooks))
    plain = plain_config(config)
    assert plain.model.type == 'RetinaNet'
    assert [hook['type'] for hook in plain.custom_hooks] == ['EMAHook']
    assert config.model.type == 'freekd_mm.DistilledModel'


class TestRun:
    """The options of tools/train.py."""

    @pytest.fixture
    def config(self, scenes_root, tmp_path):
        config = detector(scenes_root)
        config['train_cfg']['max_epochs'] = 1
        return Config.fromfile(tiny_configs.write(tmp_path / 'run.py', config))

    def test_resume_starts_from_load_from_while_there_is_no_checkpoint(self, config, tmp_path):
        """mmengine would resume from that file, with its iteration and its optimizer."""
        student = config.model.architecture.to_dict()
        start = save_weights(student, tmp_path / 'start.pth', seed=9)
        config.load_from = str(start)
        config.optim_wrapper.optimizer.lr = 0.0
        model = training.run(copy.deepcopy(config), resume='auto')
        state = torch.load(start)['state_dict']
        assert torch.equal(model.backbone.conv1.weight, state['backbone.conv1.weight'])

    def test_resume_from_the_work_dir_rather_than_load_from(self, config, tmp_path):
        config.default_hooks.checkpoint = {'type': 'CheckpointHook', 'interval': 1}
        training.run(copy.deepcopy(config))
        config.load_from = str(tmp_path / 'nothing.pth')
        config.train_cfg.max_epochs = 2
        config.experiment_name = f'{config.experiment_name}_resumed'
        training.run(copy.deepcopy(config), resume='auto')
        assert (Path(config.work_dir) / 'epoch_2.pth').is_file()


def test_runner_trains_without_our_tools(scenes_root, tmp_path):
    """mmengine finds everything by the names in the config: no import of freekd_mm is needed."""
    runner = runner_of(tiny_configs.write(tmp_path / 'plain.py', detector(scenes_root)))
    calls = Calls(runner.model.teacher, 'backbone', 'bbox_head.gfl_cls')
    runner.train()
    assert calls.counts == {'backbone': 4, 'bbox_head.gfl_cls': 0}
