"""The Python API: one call distils, and the student works where its users put it."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
from mmengine.config import Config

import freekd_mm
from freekd_mm.runtime.config import build_model, find_model

ConfigWriter = Callable[..., Path]


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Student, teacher and the teacher's checkpoint (random weights)."""
    writer: ConfigWriter = request.getfixturevalue(request.param)
    student, teacher = writer(name='student'), writer(name='teacher', width=16)
    torch.save(build_model(*find_model(Config.fromfile(teacher))).state_dict(), tmp_path / 'teacher.pth')
    return student, teacher, tmp_path / 'teacher.pth'


@pytest.mark.parametrize(
    ('pair', 'metric'), [('det_config', 'coco/bbox_mAP'), ('seg_config', 'mIoU')], indirect=['pair']
)
def test_the_student_works_in_its_inferencer(pair: tuple[Path, Path, Path], metric: str, tmp_path: Path) -> None:
    student, teacher, checkpoint = pair
    detects = metric == 'coco/bbox_mAP'
    saved = {'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1, 'by_epoch': detects}}}
    done = freekd_mm.distill(student, teacher, checkpoint, 'mse', tmp_path / 'kd', **saved)
    assert done.student == tmp_path / 'kd/student.pth'
    assert metric in done.metrics
    assert done.checkpoint.name == ('epoch_1.pth' if detects else 'iter_2.pth')
    assert Config.fromfile(done.config).model.type == 'freekd_mm.DistilledModel'
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    if detects:
        from mmdet.apis import DetInferencer

        found = DetInferencer(str(student), str(done.student), device='cpu', show_progress=False)(picture)
        assert 0 < len(found['predictions'][0]['scores']) <= 10
    else:
        from mmseg.apis import MMSegInferencer

        found = MMSegInferencer(str(student), str(done.student), device='cpu')(picture)
        assert found['predictions'].shape == (64, 64)


@pytest.mark.parametrize('pair', ['det_config'], indirect=True)
def test_misspelt_settings(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"overrides of distill should .* 'tain_cfg'\. Did you mean 'train_cfg'\?"):
        freekd_mm.distill(*pair, work_dir=tmp_path / 'kd', tain_cfg={'max_epochs': 2})


def test_other_names() -> None:
    with pytest.raises(AttributeError, match="freekd_mm has no attribute 'distil'"):
        freekd_mm.distil  # noqa: B018
