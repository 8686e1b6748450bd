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
    if detects:
        # Another student than its config says: what is exported is what was trained.
        saved['model'] = {'architecture': {'bbox_head': {'stacked_convs': 2}}}
    done = freekd_mm.distill(student, teacher, checkpoint, 'mse', tmp_path / 'kd', **saved)
    assert done.student == tmp_path / 'kd/student.pth'
    assert metric in done.metrics, 'of the evaluation of this checkpoint'
    assert done.checkpoint.name == ('epoch_1.pth' if detects else 'iter_2.pth')
    assert Config.fromfile(done.config).model.type == 'freekd_mm.DistilledModel'
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    if detects:
        from mmdet.apis import DetInferencer

        cfg = Config.fromfile(student)
        cfg.model.bbox_head.stacked_convs = 2
        cfg.dump(tmp_path / 'deeper.py')
        found = DetInferencer(str(tmp_path / 'deeper.py'), str(done.student), device='cpu')(picture)
        assert 0 < len(found['predictions'][0]['scores']) <= 10
    else:
        from mmseg.apis import MMSegInferencer

        found = MMSegInferencer(str(student), str(done.student), device='cpu')(picture)
        assert found['predictions'].shape == (64, 64)


@pytest.mark.parametrize('pair', ['det_config'], indirect=True)
def test_misspelt_settings(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"overrides of distill should .* 'tain_cfg'\. Did you mean 'train_cfg'\?"):
        freekd_mm.distill(*pair, work_dir=tmp_path / 'kd', tain_cfg={'max_epochs': 2})


@pytest.mark.parametrize(
    ('name', 'value', 'least'), [('epochs', 0, 1), ('size', -32, 32), ('size', 7, 32), ('batch_size', 0, 1)]
)
def test_numbers_of_a_pretraining(name: str, value: int, least: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f'^{name} should be at least {least}, but got {value}'):
        freekd_mm.pretrain('student.py', 'pictures', {'model': {}}, tmp_path / 'pre', **{name: value})
    assert not (tmp_path / 'pre').exists()


def test_other_names() -> None:
    with pytest.raises(AttributeError, match="freekd_mm has no attribute 'distil'"):
        freekd_mm.distil  # noqa: B018


class Encoder(torch.nn.Conv2d):
    """Stands for a foundation model."""

    def __init__(self) -> None:
        super().__init__(3, 12, 16, stride=16)


@pytest.mark.parametrize('pair', ['det_config', 'seg_config'], indirect=True)
def test_pretraining_gives_files_for_init_cfg(
    pair: tuple[Path, Path, Path], request: pytest.FixtureRequest, scenes_root: Path, tmp_path: Path
) -> None:
    student, detects = pair[0], 'det_config' in request.node.name
    torch.save(Encoder().state_dict(), tmp_path / 'encoder.pth')
    pictures = scenes_root / ('train2017' if detects else 'leftImg8bit/train')
    options = {'neck': detects, 'epochs': 2, 'size': 64, 'batch_size': 4, 'train_dataloader': {'num_workers': 0}}
    options['train_dataloader']['persistent_workers'] = False
    teacher, weights = 'module:test_api:Encoder', tmp_path / 'encoder.pth'
    found = freekd_mm.pretrain(student, pictures, teacher, tmp_path / 'pre', weights, **options)
    assert sorted(found) == (['backbone', 'neck'] if detects else ['backbone'])
    cfg, scope = find_model(Config.fromfile(student))
    before = build_model(cfg, scope).state_dict()
    for part, file in found.items():
        cfg[part]['init_cfg'] = {'type': 'Pretrained', 'checkpoint': str(file)}
    model = build_model(cfg, scope)
    model.init_weights()
    for part, file in found.items():
        trained = torch.load(file, weights_only=True)['state_dict']
        own = {key[len(part) + 1 :]: value for key, value in model.state_dict().items() if key.startswith(f'{part}.')}
        assert own.keys() == trained.keys()
        assert all(torch.equal(own[key], trained[key]) for key in own)
        assert any(not torch.equal(before[f'{part}.{key}'], trained[key]) for key in own if 'conv' in key)
    train = (tmp_path / 'pre/pretrain.py').read_text()
    assert "student='neck[1]'" in train or not detects  # of the strides 8, 16 and 32


def test_what_cannot_be_pretrained(det_config: ConfigWriter, tmp_path: Path) -> None:
    student = det_config(name='student')
    with pytest.raises(FileNotFoundError, match="a folder of pictures should exist, but got '/nowhere'"):
        freekd_mm.pretrain(student, '/nowhere', 'timm:resnet18', tmp_path / 'pre')
