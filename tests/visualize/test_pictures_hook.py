"""The hook: pictures reach the visualizer's backends, and the training does not notice."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_configs
import torch
from distill_cases import differing, distilled, runner_of, save_weights, student_weights
from mmengine.hooks import Hook
from picture_cases import LEVELS, STUDENT, TEACHER, entry

from freekd_mm.visualize import hook as hook_module
from freekd_mm.visualize.hook import DistillPicturesHook

PICTURES = {'type': 'freekd_mm.DistillPicturesHook', 'interval': 1}


class Trace(Hook):
    """Keeps the losses and all random states of every step."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        losses = {key: float(value) for key, value in outputs.items() if 'loss' in key}
        states = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
        self.steps.append((losses, *states))


def run(path: Path, scenes: Path, hooks: list[dict], **entries: Any) -> tuple[Any, Trace]:
    """Trains for two epochs with random flips."""
    config = tiny_configs.detector(scenes, channels=STUDENT, levels=LEVELS)
    config['train_dataloader']['dataset']['pipeline'].insert(-1, {'type': 'RandomFlip', 'prob': 0.5})
    config['train_cfg'] = {'type': 'EpochBasedTrainLoop', 'max_epochs': 2, 'val_interval': 2}
    big = tiny_configs.detector(scenes, width=16, channels=TEACHER, levels=LEVELS)['model']
    teacher = {'model': big, 'checkpoint': str(save_weights(big, path.with_suffix('.pth')))}
    config = distilled(config, teacher, entries or {'freekd': entry(path.parent)})
    runner = runner_of(tiny_configs.write(path, {**config, 'custom_hooks': hooks}))
    trace = Trace()
    runner.register_hook(trace, priority='LOWEST')
    runner.train()
    return runner, trace


def shown(runner: Any) -> list[str]:
    return sorted(path.name for path in Path(runner.work_dir).glob('*/vis_data/vis_image/*.png'))


def test_the_training_is_the_same_with_and_without(tmp_path: Path, scenes_root: Path) -> None:
    plain, wanted = run(tmp_path / 'plain.py', scenes_root, [])
    runner, found = run(tmp_path / 'pictures.py', scenes_root, [PICTURES])
    assert found.steps == wanted.steps
    assert differing(student_weights(plain.model), student_weights(runner.model)) == []
    assert shown(plain) == []
    names = [f'distill_freekd_{kind}_{image}' for kind in ('bands', 'masks', 'weights') for image in (0, 1)]
    assert shown(runner) == sorted(f'{name}_{step}.png' for name in names for step in range(5))


def test_the_interval_is_in_iterations_and_other_processes_draw_nothing(
    tmp_path: Path, scenes_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = [{**PICTURES, 'interval': 2}]
    logits = {'student': 'bbox_head[0]', 'loss': {'type': 'freekd_mm.FiGKDLoss'}}
    runner, _ = run(tmp_path / 'epochs.py', scenes_root, hooks, freekd=entry(tmp_path), logits=logits)
    kinds = ('bands', 'masks', 'weights')
    names = [f'distill_freekd_{kind}_{image}_{step}.png' for kind in kinds for image in (0, 1) for step in (0, 2, 4)]
    assert shown(runner) == names
    monkeypatch.setattr(hook_module, 'is_main_process', lambda: False)
    assert shown(run(tmp_path / 'other.py', scenes_root, hooks)[0]) == []


def test_wrong_use_is_named(tmp_path: Path, scenes_root: Path) -> None:
    with pytest.raises(ValueError, match='interval should be greater than 0, but got 0'):
        DistillPicturesHook(interval=0)
    config = {**tiny_configs.detector(scenes_root), 'custom_hooks': [PICTURES]}
    with pytest.raises(TypeError, match=r"should run with model=dict\(type='freekd_mm.DistilledModel', ...\), but got"):
        runner_of(tiny_configs.write(tmp_path / 'plain.py', config)).train()
