"""make_config with a teacher of another library: the nearest level of the student, features alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from freekd_mm.engine.training import run
from freekd_mm.wizard.make_config import plan_config


class Encoder(nn.Module):
    """One map with stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@pytest.fixture(scope='module')
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny DINOv2 of random weights."""
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    shape = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'image_size': 56, 'patch_size': 14}
    folder = tmp_path_factory.mktemp('hub') / 'dino'
    transformers.AutoModel.from_config(transformers.Dinov2Config(**shape)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize('kind', ['det_config', 'seg_config'])
@pytest.mark.parametrize('method', ['best', 'mse'])
def test_what_it_writes_trains(
    kind: str, method: str, dino: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A patch of 14 is nearest to stride 16, the second level of the detector; the segmenter has one level."""
    student = request.getfixturevalue(kind)(name='student')
    plan = plan_config(str(student), f'transformers:{dino}', None, method, tmp_path / 'kd.py')
    (path,) = plan.write()
    cfg = Config.fromfile(path)
    assert Path(cfg.model.teacher.transformers).resolve() == dino.resolve()
    assert list(cfg.model.teacher) == ['transformers']
    (entry,) = cfg.model.distill.values()
    assert (entry.student, entry.teacher) == ('neck[1]' if kind == 'det_config' else 'backbone[-1:]', 'backbone')
    assert 'inherit' not in cfg.model
    model = run(cfg)
    assert model.distillation.steps == 2


def test_a_module_and_chosen_features(det_config, tmp_path: Path) -> None:
    torch.save(Encoder().state_dict(), tmp_path / 'own.pth')
    given = (str(det_config(name='student')), 'module:test_make_config_foreign:Encoder', str(tmp_path / 'own.pth'))
    teacher = {'module': 'test_make_config_foreign:Encoder', 'checkpoint': str(tmp_path / 'own.pth')}
    for features, tap in (((), 'neck[0]'), (('backbone[1]',), 'backbone[1]')):
        (path,) = plan_config(*given, 'mse', tmp_path / 'kd.py', features=features).write(force=True)
        cfg = Config.fromfile(path)
        assert cfg.model.distill.mse.student == tap
        assert {key: str(Path(value).resolve()) if key == 'checkpoint' else value for key, value in
                cfg.model.teacher.items()} == teacher  # fmt: skip


@pytest.mark.parametrize(
    ('teacher', 'method', 'message'),
    [
        (
            'module:test_make_config_foreign:Encoder',
            'kl',
            'gives features alone, so the method should be one of best, ',
        ),
        ('module:test_make_config_foreign:Encoder', 'mse+crosskd', 'mgd, but got crosskd'),
        ('module:test_make_config_foreign:Encoder', 'freekd', 'but got freekd'),
        ('module:test_make_config_foreign:Encoder', 'mse', "should have a 'checkpoint', but got none"),
        ('student.py', 'mse', "student.py should have its teacher's checkpoint (--teacher-checkpoint), but got none"),
        ('transformer:dino', 'mse', "should be one of 'timm', 'transformers', 'module', but got 'transformer'"),
    ],
)
def test_mistakes_are_named(teacher: str, method: str, message: str, det_config, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        plan_config(str(det_config(name='student')), teacher, None, method, tmp_path / 'kd.py')
