"""Two gloo processes give the gradients of one process with the doubled batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import L2, distilled, save_weights
from mmengine.config import Config
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from ranks import processes
from torch_versions import newer_torch

from freekd_mm.engine import training

ROOT = Path(__file__).parents[2]
STEPS = 5
GN = {'type': 'GN', 'num_groups': 4, 'requires_grad': True}

# What a user would register: an optimizer wrapper that keeps the gradients of each step, as DDP has averaged them.
RECORD = """
import os

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS

GRADIENTS = []


@OPTIM_WRAPPERS.register_module()
class RecordingWrapper(OptimWrapper):
    def step(self, **kwargs):
        params = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        GRADIENTS.append([None if p.grad is None else p.grad.detach().clone() for p in params])
        super().step(**kwargs)


@HOOKS.register_module()
class RecordHook(Hook):
    def before_train(self, runner):
        GRADIENTS.clear()

    def after_train(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        params = [parameter for group in runner.optim_wrapper.param_groups for parameter in group['params']]
        order = {id(parameter): index for index, parameter in enumerate(params)}
        trained = {name: order[id(p)] for name, p in model.named_parameters() if p.requires_grad}
        gradients = [{name: step[index] for name, index in trained.items()} for step in GRADIENTS]
        reduced = getattr(runner.model, '_build_params_for_reducer', lambda: ([], []))()[0]
        buckets = [p.numel() for p in reduced]
        wrapped = sum(parameter.numel() for parameter in runner.model.parameters())
        teacher = sum(parameter.numel() for parameter in model.teacher.parameters())
        sums = [float(sum(p.double().sum() for p in source.parameters())) for source in (model.teacher, model)]
        torch.save({'gradients': gradients, 'world': get_world_size(), 'wrapped': wrapped, 'buckets': sum(buckets),
                    'teacher': teacher, 'sums': sums}, os.path.join(runner.work_dir, f'rank{get_rank()}.pth'))
"""


def independent_norms(model: dict, neck: bool = True) -> dict:
    """Gives a model norms whose values do not depend on the batch: frozen and evaluated, or by groups."""
    model['backbone'].update({'norm_cfg': {'type': 'BN', 'requires_grad': False}, 'norm_eval': True})
    if neck:
        model['neck']['norm_cfg'] = model['bbox_head']['norm_cfg'] = GN
    else:
        model['decode_head']['norm_cfg'] = GN
    return model


def detector(root: Path, folder: Path) -> dict:
    """GFL: its losses are normalised by the objects of all processes. One entry trains, one is off."""
    config = tiny_configs.detector(root, head='gfl')
    independent_norms(config['model'])
    # Sums of scores below 1 are not divided by: with the usual small scores the two runs would differ by that.
    override = {'type': 'Normal', 'name': 'gfl_cls', 'std': 0.01, 'bias_prob': 0.5}
    config['model']['bbox_head']['init_cfg'] = {'type': 'Normal', 'layer': 'Conv2d', 'std': 0.01, 'override': override}
    teacher = independent_norms(tiny_configs.detector(root, head='gfl', width=16, channels=24)['model'])
    mse = {'type': 'freekd_mm.FeatureMSELoss'}
    cwd = {'type': 'mmrazor.ChannelWiseDivergence', 'loss_weight': 1.0}
    entries = {
        'mse': {'student': 'neck', 'loss': mse},
        'cwd': {'student': 'backbone', 'loss': cwd},
        'off': {'student': 'neck', 'loss': mse, 'weight': 0.0},
    }
    checkpoint = str(save_weights({**teacher, '_scope_': 'mmdet'}, folder / 'detector.pth'))
    return distilled(config, {'model': teacher, 'checkpoint': checkpoint}, entries)


def segmenter(root: Path, folder: Path) -> dict:
    """Two teachers; the mean over all pixels; no dropout, which each process would draw for itself."""
    config = tiny_configs.segmenter(root)
    independent_norms(config['model'], neck=False)
    config['model']['decode_head']['dropout_ratio'] = 0
    teacher = independent_norms(tiny_configs.segmenter(root, width=16)['model'], neck=False)
    entries = {'mse': {'student': 'backbone[3]', 'loss': L2}, 'figkd': {'student': 'decode_head', 'loss': FIGKD}}
    entries['second'] = {**entries['mse'], 'of': 'second'}
    files = [save_weights({**teacher, '_scope_': 'mmseg'}, folder / f'{seed}.pth', 'mmseg', seed) for seed in (1, 2)]
    first, second = ({'model': teacher, 'checkpoint': str(file)} for file in files)
    return distilled(config, [first, {**second, 'name': 'second'}], entries)


FIGKD = {'type': 'freekd_mm.FiGKDLoss'}


def write(config: dict, path: Path, batch: int) -> Path:
    """Writes the config of a run that keeps its gradients."""
    (path.parent / 'record_gradients.py').write_text(RECORD)
    config['train_dataloader'] = {**config['train_dataloader'], 'batch_size': batch}
    config['train_cfg'] = {'type': 'IterBasedTrainLoop', 'max_iters': STEPS, 'val_interval': 100}
    config['optim_wrapper'] = {'type': 'RecordingWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.01, 'momentum': 0.9}}
    config['custom_hooks'] = [{'type': 'RecordHook'}]
    config['custom_imports'] = {'imports': ['record_gradients'], 'allow_failed_imports': False}
    config['default_hooks'] = {'checkpoint': None}
    return tiny_configs.write(path, config)


def run_here(config: dict, path: Path) -> dict:
    """Trains with the whole batch in this process, and returns what was recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        patch.delitem(sys.modules, 'record_gradients', raising=False)
        for registry in (OPTIM_WRAPPERS, HOOKS):
            for name in ('RecordingWrapper', 'RecordHook'):
                patch.delitem(registry.module_dict, name, raising=False)
        training.run(Config.fromfile(write(config, path, 4)))
    return torch.load(path.parent / f'{path.stem}_work' / 'rank0.pth')


def fork(path: Path) -> None:
    """Trains in two processes."""
    config = Config.fromfile(path)
    config.launcher = 'pytorch'
    for status, output in processes(path.parent, lambda: training.run(config)):
        assert status == 0, output


def launch(path: Path) -> None:
    """Trains in two processes, as tools/dist_train.sh does."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [str(ROOT / 'tools' / 'train.py'), str(path), '--launcher', 'pytorch']
    paths = os.pathsep.join([str(path.parent), str(ROOT), os.environ.get('PYTHONPATH', '')])
    result = subprocess.run(
        command,
        cwd=path.parent,
        env={**os.environ, 'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-5000:]


@pytest.fixture(scope='module', params=[detector, segmenter], ids=['detector', 'segmenter'])
def runs(request, scenes_root, tmp_path_factory):
    """Returns what one process with 4 pictures recorded, and what each of two with 2 did."""
    folder = tmp_path_factory.mktemp('distributed')
    one = run_here(request.param(scenes_root, folder), folder / 'one.py')
    train = launch if request.param is detector else fork
    train(write(request.param(scenes_root, folder), folder / 'two.py', 2))
    two = [torch.load(folder / 'two_work' / f'rank{rank}.pth') for rank in range(2)]
    assert one['world'] == 1
    assert [each['world'] for each in two] == [2, 2]
    return one, two


def test_gradients_are_those_of_the_doubled_batch(runs):
    one, two = runs
    assert len(one['gradients']) == STEPS
    moved = 0
    for step, expected in enumerate(one['gradients']):
        for each in two:
            actual = each['gradients'][step]
            assert list(actual) == list(expected)
            for name, gradient in expected.items():
                if gradient is None:  # an entry that is off: DDP has zeros
                    assert name.startswith('distillation.entries.off.')
                    assert not actual[name].any()
                    continue
                assert (actual[name] - gradient).abs().max() <= 1e-5, (step, name)
                moved += bool(gradient.abs().max() > 1e-4)
    assert moved > len(one['gradients'][0])


@newer_torch('fully sharded training on a CPU')
def test_fully_sharded(scenes_root, tmp_path):
    """mmengine's FSDP strategy: each process holds a part of each gradient, and nothing of the teacher.

    A segmenter: FSDP does not take the scalar parameters of GFL's head.
    """
    config = {**segmenter(scenes_root, tmp_path), 'runner_type': 'FlexibleRunner'}
    one = run_here(config, tmp_path / 'one.py')
    config['strategy'] = {'type': 'FSDPStrategy', 'state_dict_cfg': 'local'}
    fork(write(config, tmp_path / 'sharded.py', 2))
    parts = [torch.load(tmp_path / 'sharded_work' / f'rank{rank}.pth') for rank in range(2)]
    assert sum(each['wrapped'] for each in parts) < 1.1 * one['wrapped']
    assert len(one['gradients']) == STEPS
    for step, expected in enumerate(one['gradients']):
        for name, gradient in expected.items():
            shards = [each['gradients'][step][name] for each in parts]
            flat = torch.cat([shard.flatten() for shard in shards if shard is not None])
            assert flat.numel() == gradient.numel()
            assert (flat - gradient.flatten()).abs().max() <= 1e-5, (step, name)


def test_teacher_is_in_no_bucket_and_the_same_everywhere(runs):
    one, two = runs
    for each in two:
        assert each['buckets'] > 0
        assert each['buckets'] <= each['wrapped'] == one['wrapped']
        assert each['teacher'] == one['teacher'] > 0
        assert each['sums'] == two[0]['sums']
        assert each['sums'][0] == one['sums'][0]


@pytest.mark.parametrize('task_loss', [True, False])
def test_weights_that_no_loss_reaches(scenes_root, tmp_path, task_loss):
    """DDP waits for a gradient of every weight, also of the head where the task has no loss."""
    config = detector(scenes_root, tmp_path)
    config['model']['task_loss'] = task_loss
    config['train_cfg'] = {'type': 'IterBasedTrainLoop', 'max_iters': 3, 'val_interval': 100}
    config['default_hooks'] = {'checkpoint': {'type': 'CheckpointHook', 'interval': 3, 'by_epoch': False}}
    path = tiny_configs.write(tmp_path / 'kd.py', config)
    fork(path)
    assert (tmp_path / 'kd_work' / 'iter_3.pth').is_file()
