"""Pictures without labels in a training: which losses they have, exact resumes, several processes, Soft Teacher."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Callable

import pytest
import tiny_configs
import torch
from distill_cases import L2, build, det_samples, distilled, images, make_config, save_weights
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from ranks import processes

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.compat.versions import torch_at_least
from freekd_mm.engine.training import run
from freekd_mm.runtime.distillation import is_unlabelled

ConfigWriter = Callable[..., Path]
PARTS = ('state_dict', 'optimizer')


#: The losses that each step of a run logged, by the name of the run.
LOSSES: dict[str, list[set[str]]] = {}


@HOOKS.register_module()
class KeepLosses(Hook):
    """Keeps what each step logs, and can end the run."""

    def __init__(self, run: str, last: int | None = None) -> None:
        self.steps, self.last = LOSSES.setdefault(run, []), last

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.steps.append({key for key in outputs if key != 'loss' and 'loss' in key})
        if len(self.steps) == self.last:
            raise KeyboardInterrupt


def config_of(kind: str, writer: ConfigWriter, root: Path, folder: Path) -> Path:
    """Writes a config with one unlabelled batch for each two labelled ones, by make_config."""
    student, teacher = writer(name='student'), writer(name='teacher', width=16)
    checkpoint = save_weights(Config.fromfile(teacher).model, folder / 'teacher.pth', kind)
    pictures = root / ('val2017' if kind == 'mmdet' else 'leftImg8bit/val')
    names = [str(student), str(teacher), str(checkpoint), 'mse', folder / 'kd.py']
    return make_config(*names, unlabelled=pictures)[-1]


def train(path: Path, work: Path, *hooks: dict, resume: str | None = None, **settings: Any) -> Path:
    cfg = Config.fromfile(path)
    saving = {'type': 'CheckpointHook', 'interval': 2, 'by_epoch': False}
    cfg.merge_from_dict({'default_hooks': {'checkpoint': saving}, 'randomness': {'seed': 5}, **settings})
    cfg.merge_from_dict({'work_dir': str(work), 'experiment_name': f'{work.name}_{len(list(work.parent.rglob("*")))}'})
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), *hooks]
    run(cfg, resume=resume)
    return work


@pytest.mark.parametrize(('writer', 'kind'), [('det_config', 'mmdet'), ('seg_config', 'mmseg')])
def test_unlabelled_batches_are_only_distilled(
    writer: str, kind: str, request: pytest.FixtureRequest, scenes_root: Path, tmp_path: Path
) -> None:
    path = config_of(kind, request.getfixturevalue(writer), scenes_root, tmp_path)
    LOSSES.clear()
    length = {'max_epochs': 2} if kind == 'mmdet' else {'max_iters': 8, 'val_interval': 8}
    settings = {'train_cfg': length, 'train_dataloader.batch_sampler.ratio': 0.5 if kind == 'mmseg' else 1}
    end = train(path, tmp_path / 'whole', {'type': 'KeepLosses', 'run': 'whole'}, **settings)
    whole = LOSSES['whole']
    both = [any('distill' not in key for key in step) for step in whole]
    assert both == ([True, False] * 4 if kind == 'mmdet' else [True, True, False, True, True, False, True, True])
    assert all(any('distill.loss_mse' in key for key in step) for step in whole)
    with pytest.raises(KeyboardInterrupt):
        train(path, tmp_path / 'parts', {'type': 'KeepLosses', 'run': 'first', 'last': 3}, **settings)
    train(path, tmp_path / 'parts', {'type': 'KeepLosses', 'run': 'second'}, resume='auto', **settings)
    assert [*LOSSES['first'][:2], *LOSSES['second']] == whole
    files = [load_checkpoint_file(folder / 'iter_8.pth') for folder in (end, tmp_path / 'parts')]
    # Before PyTorch 2.0 zero_grad() leaves zeros, with which momentum moves what an unlabelled batch has no gradient
    # for. A resumed run has no gradients yet: its first unlabelled step does not move that.
    assert not torch_at_least(2, 0) or all(_same(*(file[part] for file in files)) for part in PARTS)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return first == second


STUDENT = tiny_configs.detector(Path('.'))['model']
TEACHER = {'model': tiny_configs.detector(Path('.'), width=16)['model'], 'allow_random': True}


def test_a_batch_of_both_kinds() -> None:
    samples = det_samples()
    assert not is_unlabelled(samples)
    samples[0].set_metainfo({'unlabelled': True})
    with pytest.raises(ValueError, match=r'only pictures with labels or only pictures without, .*MixedBatchSampler'):
        is_unlabelled(samples)


def unlabelled() -> list[Any]:
    samples = det_samples()
    for sample in samples:
        sample.set_metainfo({'unlabelled': True})
    return samples


def test_they_say_nothing_of_the_pull_and_end_with_the_distillation() -> None:
    """weight='auto' compares with the task, which these pictures do not have."""
    model = build(distilled({'model': STUDENT}, TEACHER, {'kd': {'loss': L2, 'weight': 'auto'}})['model'])
    model.loss(images(), det_samples())
    count = model.distillation.entry('kd').pull.count
    losses = model.loss(images(), unlabelled())
    assert (model.distillation.entry('kd').pull.count, count) == (1, 1)
    assert losses['distill.loss_kd'] > 0
    model.distillation_stopped = True
    losses = model.loss(images(), unlabelled())
    assert list(losses) == ['distill.loss_idle']
    assert losses['distill.loss_idle'] == 0
    losses['distill.loss_idle'].backward()
    assert 'loss_cls' in model.loss(images(), det_samples())


def test_a_student_without_a_task_ends_when_the_schedule_is_at_zero() -> None:
    """A falling weight is zero at the very last step, which is no mistake."""
    model = build(distilled({'model': STUDENT}, TEACHER, {'kd': {'loss': L2}}, task_loss=False)['model'])
    model.distillation.entry('kd').scale = 0.0
    losses = model.loss(images(), det_samples())
    assert list(losses) == ['distill.loss_idle']
    losses['distill.loss_idle'].backward()


def test_two_processes(det_config: ConfigWriter, scenes_root: Path, tmp_path: Path) -> None:
    """DDP waits for a gradient of every weight, also of the head in a step without labels."""
    path = config_of('mmdet', det_config, scenes_root, tmp_path)
    settings = {'launcher': 'pytorch', 'train_dataloader.batch_size': 1, 'val_cfg': None}
    settings.update(val_dataloader=None, val_evaluator=None)
    for status, output in processes(tmp_path / 'ranks', lambda: train(path, tmp_path / 'work', **settings)):
        assert status == 0, output
    assert (tmp_path / 'work/iter_8.pth').is_file()


def test_beside_soft_teacher() -> None:
    """mmdet's semi-supervised detectors have a way of their own to unlabelled pictures: the labelled are distilled."""
    branches = {'sup': {}, 'unsup_teacher': {}, 'unsup_student': {}}
    student = {
        'type': 'SemiBaseDetector',
        'detector': copy.deepcopy(STUDENT),
        'data_preprocessor': {
            'type': 'MultiBranchDataPreprocessor',
            'data_preprocessor': copy.deepcopy(STUDENT['data_preprocessor']),
        },
        'semi_train_cfg': {
            'freeze_teacher': True,
            'sup_weight': 1.0,
            'unsup_weight': 2.0,
            'pseudo_label_initial_score_thr': 0.0,
            'cls_pseudo_thr': 0.0,
            'min_pseudo_bbox_wh': (0, 0),
        },
        'semi_test_cfg': {'predict_on': 'teacher'},
    }
    entries = {'kd': {'student': 'student.neck', 'teacher': 'neck', 'loss': L2}}
    model = build(distilled({'model': student}, TEACHER, entries)['model']).train()
    inputs = {name: images(2, seed=seed) for seed, name in enumerate(branches)}
    samples = {name: det_samples() for name in branches}
    for name in ('unsup_teacher', 'unsup_student'):
        for sample in samples[name]:
            sample.set_metainfo({'homography_matrix': torch.eye(3).numpy()})
    losses = model.loss(inputs, samples)
    assert {'sup_loss_cls', 'unsup_loss_cls', 'distill.loss_kd'} <= set(losses)
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert model.student.neck.lateral_convs[0].conv.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model._modules['teacher'].parameters())
