"""A user's own project outside of the repository: own data set class, own configs, two classes, every tool."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import mmdet
import numpy as np
import pytest
import torch
from distill_cases import build, save_weights
from mmengine.config import Config

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.runtime.model import student_state_dict

ROOT = Path(__file__).parents[2]
MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'

DATASET = '''
from pathlib import Path

from mmdet.datasets import BaseDetDataset
from mmdet.registry import DATASETS


@DATASETS.register_module()
class ShapesDataset(BaseDetDataset):
    """Reads lines like ``images/0.png 3 4 20 30 disc 25 8 60 40 square``."""

    METAINFO = dict(classes=('disc', 'square'), palette=[(255, 0, 0), (0, 0, 255)])

    def load_data_list(self):
        items = []
        for line in Path(self.ann_file).read_text().splitlines():
            path, *words = line.split()
            boxes = [words[index : index + 5] for index in range(0, len(words), 5)]
            instances = [
                dict(
                    bbox=[float(number) for number in box[:4]],
                    bbox_label=self.metainfo['classes'].index(box[4]),
                    ignore_flag=0,
                )
                for box in boxes
            ]
            img_path = str(Path(self.data_root) / path)
            items.append(dict(img_path=img_path, img_id=len(items), height=64, width=64, instances=instances))
        return items
'''

STUDENT = """
_base_ = ['mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['shapes_dataset'], allow_failed_imports=False)
data_root = {root!r}
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ShapesDataset', data_root=data_root, ann_file='train.txt', pipeline=pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ShapesDataset', data_root=data_root, ann_file='val.txt', pipeline=pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='VOCMetric', metric='mAP')
test_evaluator = val_evaluator
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
randomness = dict(seed=0)
model = dict(
    type='GFL',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, pad_size_divisor=32
    ),
    backbone=dict(type='ResNet', depth=18, base_channels=8, out_indices=(1, 2, 3), norm_eval=False),
    neck=dict(type='FPN', in_channels=[16, 32, 64], out_channels=16, num_outs=3),
    bbox_head=dict(
        type='GFLHead',
        num_classes=2,
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        norm_cfg=dict(type='BN'),
        reg_max=8,
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=4, scales_per_octave=1, strides=[8, 16, 32]
        ),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
    ),
    train_cfg=dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=50, min_bbox_size=0, score_thr=0.001, nms=dict(type='nms', iou_threshold=0.6), max_per_img=10
    ),
)
"""

TEACHER = """
_base_ = ['./student.py']
model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[32, 64, 128], out_channels=24),
    bbox_head=dict(in_channels=24, feat_channels=24),
)
"""


def draw(folder: Path) -> None:
    """Draws a disc and a square on each of 8 pictures for training and 4 for testing."""
    (folder / 'images').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, numbers in (('train', range(8)), ('val', range(8, 12))):
        lines = []
        for number in numbers:
            picture = np.full((64, 64, 3), 200, np.uint8)
            x, y, size = (int(value) for value in rng.integers((2, 2, 8), (20, 40, 14)))
            cv2.circle(picture, (x + size, y + size // 2), size // 2, (0, 0, 255), -1)
            disc = (x + size // 2, y, x + size // 2 + size, y + size)
            cv2.rectangle(picture, (36, y), (36 + size, y + size), (255, 0, 0), -1)
            cv2.imwrite(str(folder / 'images' / f'{number}.png'), picture)
            boxes = [*disc, 'disc', 36, y, 36 + size, y + size, 'square']
            lines.append(' '.join(map(str, [f'images/{number}.png', *boxes])))
        (folder / f'{split}.txt').write_text('\n'.join(lines) + '\n')


class Project:
    """The user's folder."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        draw(folder / 'shapes')
        (folder / 'shapes_dataset.py').write_text(DATASET)
        (folder / 'student.py').write_text(STUDENT.format(root=str(folder / 'shapes') + '/'))
        (folder / 'teacher.py').write_text(TEACHER)
        save_weights(Config.fromfile(folder / 'teacher.py').model.to_dict(), folder / 'teacher.pth')

    def here(self, script: Path, *args: object) -> None:
        """Runs a script's command line in this process, to save the start of another."""
        self.patch.setattr(sys, 'argv', [str(script), *map(str, args)])
        runpy.run_path(str(script), run_name='__main__')

    def process(self, *command: object) -> str:
        """Runs Python in a process of its own and returns what it printed."""
        result = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=self.folder,
            env={**os.environ, 'PYTHONPATH': f'{self.folder}:{ROOT}:{os.environ["PYTHONPATH"]}'},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-5000:]
        return result.stdout

    def checkpoint(self, work_dir: str, name: str = 'epoch_2.pth') -> dict:
        """Loads a checkpoint of a run."""
        return load_checkpoint_file(self.folder / work_dir / name)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """The project after make_config and a first epoch of training."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp('user_project')
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, 'shapes_dataset', raising=False)
        project = Project(folder, patch)
        arguments = ('student.py', 'teacher.py', '--teacher-checkpoint', 'teacher.pth', '--method', 'mgd+figkd')
        project.here(ROOT / 'tools' / 'make_config.py', *arguments, '-o', 'distill.py')
        project.process(ROOT / 'tools' / 'train.py', 'distill.py', '--cfg-options', 'train_cfg.max_epochs=1')
        yield project


def test_config_inherits_the_users_own(project):
    text = (project.folder / 'distill.py').read_text()
    assert "_base_ = ['student.py']" in text
    config = Config.fromfile(project.folder / 'distill.py')
    assert config.model.architecture == Config.fromfile(project.folder / 'student.py').model
    assert config.train_dataloader.dataset.type == 'ShapesDataset'
    assert set(config.model.distill) == {'mgd', 'figkd'}


def test_train_resume_test_export_and_load_in_plain_mmdet(project):
    work_dir = project.folder / 'work_dirs' / 'distill'
    first = project.checkpoint(work_dir, 'epoch_1.pth')
    assert first['meta']['dataset_meta']['classes'] == ('disc', 'square')

    project.here(ROOT / 'tools' / 'train.py', 'distill.py', '--resume')
    file = project.checkpoint(work_dir)
    assert file['meta']['epoch'] == 2
    assert file['meta']['iter'] == 4

    tools, out = ROOT / 'tools', project.folder / 'metrics.json'
    project.here(tools / 'test.py', 'distill.py', work_dir / 'epoch_2.pth', '--result', out)
    metrics = json.loads(out.read_text())
    assert 0 <= metrics['pascal_voc/mAP'] <= 1

    project.here(tools / 'export_student.py', 'distill.py', work_dir / 'epoch_2.pth', '-o', 'student.pth')
    exported = torch.load(project.folder / 'student.pth')
    assert sorted(exported) == ['meta', 'state_dict']

    # Plain mmdet, which never hears of this package.
    code = (
        'import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__"); '
        'assert not any(name.startswith("freekd_mm") for name in sys.modules)'
    )
    project.process('-c', code, MMDET_TOOLS / 'test.py', 'student.py', 'student.pth', '--work-dir', 'plain')
    plain = json.loads(next((project.folder / 'plain').glob('*/*.json')).read_text())
    assert plain['pascal_voc/mAP'] == metrics['pascal_voc/mAP']

    # The training checkpoint holds the plain student too.
    student = build(Config.fromfile(project.folder / 'student.py').model)
    state = student_state_dict(file['state_dict'])
    student.load_state_dict(state)
    assert all(torch.equal(exported['state_dict'][key], value) for key, value in state.items())


def test_mmdets_own_train_script(project):
    """The same config, none of our tools; the classes it names bring everything else."""
    options = ('--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=5')
    project.process(MMDET_TOOLS / 'train.py', 'distill.py', '--work-dir', 'mmdet_work', *options)
    ours = project.checkpoint('work_dirs/distill', 'epoch_1.pth')['state_dict']
    theirs = project.checkpoint('mmdet_work', 'epoch_1.pth')['state_dict']
    assert sorted(ours) == sorted(theirs)
    assert any(key.startswith('distillation.entries.mgd.') for key in theirs)
    log = next((project.folder / 'mmdet_work').glob('*/*.log')).read_text()
    assert 'distill.loss_figkd' in log
