"""The methods on heads and their sisters from end to end: gradient, resume, export, on generated scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest
import tiny_configs
import torch
from distill_cases import build, det_samples, differing, images, make_config, save_weights, seg_samples
from mmengine.config import Config

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.engine.training import run
from freekd_mm.runtime.export import export_student

ConfigWriter = Callable[..., Path]
ON_DETECTORS = ('ld', 'crosskd', 'kl', 'figkd', 'dctkd', 'famkd', 'famkd-review')
STACK = 'crosskd+ld+kl+figkd+dctkd+famkd'


def written(writer: ConfigWriter, folder: Path, method: str, **options: object) -> Config:
    """Returns what make_config writes for two tiny models."""
    kind = tiny_configs.detector if options else tiny_configs.segmenter
    student, teacher = writer(name='student', **options), writer(name='teacher', width=16, **options)
    model = kind(folder, width=16, **options)['model']
    checkpoint = save_weights(model, folder / 'teacher.pth', 'mmdet' if options else 'mmseg')
    pair = (str(student), str(teacher), str(checkpoint))
    return Config.fromfile(make_config(*pair, method, folder / 'kd.py', inherit=None)[-1])


@pytest.mark.parametrize('method', [*ON_DETECTORS, 'kl of pixels', 'dctkd of a segmenter'])
def test_the_loss_alone_trains_the_student(
    method: str, det_config: ConfigWriter, seg_config: ConfigWriter, tmp_path: Path
) -> None:
    detects = method in ON_DETECTORS
    writer, options = (det_config, {'head': 'gfl'}) if detects else (seg_config, {})
    cfg = written(writer, tmp_path, method.split()[0], **options)
    model = build(cfg.model, 'mmdet' if detects else 'mmseg').train()
    model.init_weights()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    values = []
    for _ in range(8):
        losses = model.loss(images(), (det_samples if detects else seg_samples)())
        (name,) = (key for key in losses if key.startswith('distill.loss'))
        optimizer.zero_grad()
        losses[name].backward()
        optimizer.step()
        values.append(losses[name].item())
    assert model.backbone.conv1.weight.grad.abs().sum() > 0 if detects else model.backbone.stem[0].weight.grad.any()
    assert values[-1] < 0.9 * values[0]


def test_a_stack_of_them_resumes_exactly_and_exports(det_config: ConfigWriter, tmp_path: Path) -> None:
    cfg = written(det_config, tmp_path, STACK, head='gfl', channels=16)
    cfg.default_hooks = dict(cfg.default_hooks, checkpoint=dict(type='CheckpointHook', interval=1))
    files = {}
    for name, epochs in (('whole', [2]), ('parts', [1, 2])):
        for last in epochs:
            part = cfg.copy()
            part.work_dir, part.train_cfg.max_epochs = str(tmp_path / name), last
            run(part, resume='auto' if last > epochs[0] else None)
        files[name] = tmp_path / name / 'epoch_2.pth'
    whole, parts = (load_checkpoint_file(file)['state_dict'] for file in files.values())
    assert not differing(whole, parts)
    export = export_student(cfg, files['parts'], tmp_path / 'student.pth')
    assert export.difference == 0
    assert not any('distillation' in key for key in load_checkpoint_file(tmp_path / 'student.pth')['state_dict'])
