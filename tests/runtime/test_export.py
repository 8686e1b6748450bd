"""Exported students: nothing of the distillation in them, strictly loadable, the same predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from mmengine.config import Config

from freekd_mm.checkpoints.fitting import WeightsMismatchError
from freekd_mm.engine.training import run
from freekd_mm.runtime import export
from freekd_mm.runtime.config import build_model, find_model
from freekd_mm.runtime.export import export_student

ConfigWriter = Callable[..., Path]
TEMPLATE = """
_base_ = [{student!r}]
model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{{{_base_.model}}}},
    teacher=dict(cfg_path={teacher!r}, allow_random=True),
    distill=dict(mse=dict(student={tap!r}, loss=dict(type='freekd_mm.FeatureMSELoss'))),
)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch={by_epoch}))
"""


@pytest.fixture
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Config, Path]:
    """A distilled student's config and its checkpoint after two iterations."""
    writer: ConfigWriter = request.getfixturevalue(request.param)
    segmenter = request.param == 'seg_config'
    options = {} if segmenter else {'head': 'gfl'}
    student = writer(name='student', **options)
    teacher = writer(name='teacher', width=16, **options)
    tap = 'backbone[-1:]' if segmenter else 'neck'
    path = tmp_path / 'kd.py'
    path.write_text(TEMPLATE.format(student=str(student), teacher=str(teacher), tap=tap, by_epoch=not segmenter))
    cfg = Config.fromfile(path)
    run(cfg.copy())
    name = 'iter_2.pth' if segmenter else 'epoch_1.pth'
    return cfg, Path(cfg.work_dir) / name


@pytest.mark.parametrize('trained', ['det_config', 'seg_config'], indirect=True)
def test_the_exported_student_is_plain_and_predicts_the_same(trained: tuple[Config, Path], tmp_path: Path) -> None:
    cfg, checkpoint = trained
    found = export_student(cfg, checkpoint, tmp_path / 'student.pth')
    assert found.difference == 0
    assert found.dropped > 0
    assert found.images == 2
    file = torch.load(tmp_path / 'student.pth', weights_only=True)
    model = build_model(*find_model(cfg))
    model.load_state_dict(file['state_dict'], strict=True)
    assert not any('distillation' in key or 'teacher' in key for key in file['state_dict'])
    assert not list(tmp_path.glob('.student*'))


@pytest.mark.parametrize('trained', ['det_config'], indirect=True)
def test_half_precision_is_half_the_size(trained: tuple[Config, Path], tmp_path: Path) -> None:
    cfg, checkpoint = trained
    full = export_student(cfg, checkpoint, tmp_path / 'full.pth')
    half = export_student(cfg, checkpoint, tmp_path / 'half.pth', half=True)
    assert half.difference > 0, 'rounded weights predict something else'
    assert half.megabytes < 0.75 * full.megabytes  # names and shapes are stored too
    weights = torch.load(tmp_path / 'half.pth', weights_only=True)['state_dict']
    assert {value.dtype for value in weights.values()} == {torch.float16, torch.int64}


@pytest.mark.parametrize('trained', ['det_config'], indirect=True)
def test_a_student_that_predicts_something_else_is_an_error(
    trained: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, checkpoint = trained

    def save_another(content: dict[str, Any], path: Path) -> Path:
        content['state_dict']['neck.lateral_convs.0.conv.weight'] += 1e-3
        return save(content, path)

    save = export._save
    monkeypatch.setattr(export, '_save', save_another)
    with pytest.raises(RuntimeError, match=r'should predict what \S+ predicts, but they differ by'):
        export_student(cfg, checkpoint, tmp_path / 'student.pth')


@pytest.mark.parametrize('trained', ['det_config'], indirect=True)
def test_the_checkpoint_of_another_model_is_refused(
    trained: tuple[Config, Path], det_config: ConfigWriter, tmp_path: Path
) -> None:
    _, checkpoint = trained
    other = Config.fromfile(det_config(name='other', head='retina'))
    with pytest.raises(RuntimeError, match='should fit RetinaNet, but only '):
        export_student(other, checkpoint, tmp_path / 'student.pth')
    assert not (tmp_path / 'student.pth').exists()


@pytest.mark.parametrize('trained', ['det_config'], indirect=True)
def test_a_second_name_of_a_weight_is_left_out_and_other_weights_are_refused(
    trained: tuple[Config, Path], tmp_path: Path
) -> None:
    """DDQ's decoder gets branches of its head in the first step of its training."""
    cfg, checkpoint = trained
    file = torch.load(checkpoint, weights_only=False)
    own = file['state_dict']['neck.lateral_convs.0.conv.weight']
    file['state_dict']['bbox_head.again.weight'] = own.clone()
    torch.save(file, checkpoint)
    assert export_student(cfg, checkpoint, tmp_path / 'student.pth').difference == 0
    weights = torch.load(tmp_path / 'student.pth', weights_only=True)['state_dict']
    build_model(*find_model(cfg)).load_state_dict(weights, strict=True)

    file['state_dict']['bbox_head.again.weight'] = own + 1
    torch.save(file, checkpoint)
    with pytest.raises(WeightsMismatchError, match=r'and no others, but has bbox_head\.again\.weight'):
        export_student(cfg, checkpoint, tmp_path / 'other.pth')


@pytest.mark.parametrize('trained', ['det_config'], indirect=True)
def test_an_export_needs_no_test_data(
    trained: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The predictions are compared on noise."""
    said: list[str] = []
    monkeypatch.setattr(export, 'warn', said.append)
    cfg, checkpoint = trained
    cfg.test_dataloader.dataset.ann_file = 'gone.json'
    found = export_student(cfg, checkpoint, tmp_path / 'noise.pth')
    assert (found.images, found.difference) == (2, 0)
    assert len(said) == 1
    assert said[0].startswith('the test data cannot be read, so the predictions are compared on noise: ')
