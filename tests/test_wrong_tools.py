"""What users get wrong on the command line: status, text, no traceback, and no file of theirs is touched.

Each case is a process of its own, a fork of this one; see ``tool_runs``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_configs
import torch
from distill_cases import save_weights
from mmengine.config import Config
from scenes import DET_METAINFO
from tool_runs import run_tool
from wrong_tool_cases import CASES
from wrong_use_cases import CASES as CALLS

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.files import is_unedited, write_bytes, write_kept
from freekd_mm.pictures import png

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='the tools run as forks of this process')
TASKS = {'det': tiny_configs.detector, 'seg': tiny_configs.segmenter}


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (os.system, ('true',))


def ok(folder: Path, *words: object) -> str:
    status, text = run_tool(folder, *words)
    assert status == 0, text
    return text


@pytest.fixture(scope='session')
def folders(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path) -> dict[str, Path]:
    """What a user has, of each task: configs, checkpoints, trainings with and without a teacher, and own files."""
    return {task: user_folder(tmp_path_factory.mktemp(task), scenes_root, task) for task in TASKS}


def user_folder(folder: Path, scenes: Path, task: str) -> Path:
    scope = {'det': 'mmdet', 'seg': 'mmseg'}[task]
    wide = {'width': 16, 'channels': 24}
    for name, options in (('student', {}), ('teacher', wide)):
        config = TASKS[task](scenes, **options)
        config['default_hooks'] = {'checkpoint': {'type': 'CheckpointHook', 'interval': 1, 'by_epoch': task == 'det'}}
        (folder / f'{name}.py').write_text(tiny_configs.source(config))
        save_weights(config['model'], folder / f'{name}.pth', scope)
    make = ['student.py', 'teacher.py', '--teacher-checkpoint', 'teacher.pth', '--method', 'mse', '--no-inherit']
    ok(folder, 'make_config.py', *make, '-o', 'kd.py')
    shutil.copy(folder / 'kd.py', folder / 'edited.py')
    with (folder / 'edited.py').open('a') as file:
        file.write('# my own line\n')
    ok(folder, 'train.py', 'kd.py')
    ok(folder, 'train.py', 'student.py', '--work-dir', 'work_dirs/alone')
    for run in ('kd', 'alone'):
        last = Path((folder / f'work_dirs/{run}/last_checkpoint').read_text())
        shutil.copy(folder / last, folder / f'work_dirs/{run}/trained.pth')
    own_files(folder, scenes, task)
    return folder


def own_files(folder: Path, scenes: Path, task: str) -> None:
    for name in ('notes.txt', 'mine.py', 'mine.html', 'mine.pkl', 'picture.html'):
        (folder / name).write_text('mine = 1\n')
    (folder / 'empty').mkdir()
    (folder / 'empty.pth').touch()
    (folder / 'broken.py').write_text('model = dict(\n')
    (folder / 'no_model.py').write_text('x = 1\n')
    (folder / 'name_error.py').write_text('lr = base_lr * 2\n')
    (folder / 'list.json').write_text('[1, 2]\n')
    shutil.copy(next(iter((scenes / 'val2017').iterdir())), folder / 'picture.png')
    torch.save({'state_dict': Code()}, folder / 'code.pth')
    weights = load_checkpoint_file(folder / 'teacher.pth')
    weights['state_dict']['backbone.layer1.0.conv1.weight'][0, 0] = float('nan')
    torch.save(weights, folder / 'nan.pth')
    last = (folder / 'work_dirs/kd/last_checkpoint').read_text()
    variants = {
        'kd': {
            'wrong_option': 'model = dict(distill=dict(mse=dict(loss=dict(wieght=1))))',
            'wrong_loss': "model = dict(distill=dict(mse=dict(loss=dict(type='freekd_mm.FeatureMSELos'))))",
            'wrong_backbone': "model = dict(architecture=dict(backbone=dict(type='ResNett')))",
            'kd_same': "model = dict(teacher=dict(cfg_path='student.py', checkpoint='student.pth'))",
            'wrong_teacher': "model = dict(teacher=dict(checkpont='x.pth'))",
            'nan_teacher': "model = dict(teacher=dict(checkpoint='nan.pth'))",
            'other_teacher': "model = dict(teacher=dict(checkpoint='student.pth'))",
            'from_own': f"load_from = '{last}'",
        },
        'student': {
            'wrong_key': 'model = dict(backbone=dict(depht=18))',
            'wrong_depth': 'model = dict(backbone=dict(depth=17))',
            'no_maps': "train_dataloader = dict(dataset=dict(seg_map_suffix='_maps.png'))",
            'no_suffix': "train_dataloader = dict(dataset=dict(img_suffix='.jpeg'))",
        },
    }
    if task == 'det':
        good = json.loads((scenes / 'annotations/instances_train2017.json').read_text())
        files = {'no_bytes': '', 'broken_json': '{"images": [', 'no_boxes': json.dumps({**good, 'annotations': []})}
        for name, text in files.items():
            (folder / f'{name}.json').write_text(text)
            variants['student'][name] = f"train_dataloader = dict(dataset=dict(ann_file='{folder / name}.json'))"
        classes = tuple(name.upper() for name in DET_METAINFO['classes'])
        data = {
            'capitals': f'metainfo=dict(classes={classes!r})',
            'no_file': "ann_file='annotations/instances_train2018.json'",
            'no_images': "data_prefix=dict(img='train2018/')",
        }
        variants['student'].update(
            {name: f'train_dataloader = dict(dataset=dict({text}))' for name, text in data.items()}
        )
    for base, texts in variants.items():
        for name, text in texts.items():
            (folder / f'{name}.py').write_text(f"_base_ = ['./{base}.py']\n{text}\n")


def hashes(folder: Path) -> dict[Path, str]:
    """All files but the one that a work directory is locked with."""
    files = [path for path in folder.rglob('*') if path.is_file() and path.name not in ('.lock', '.output')]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize('name', CASES)
def test_wrong_command(name, folders):
    folder = folders[name[:3]]
    command, text = CASES[name]
    before = hashes(folder)
    status, said = run_tool(folder, *command.split())
    assert status == 2, said
    assert 'Traceback' not in said
    assert 'Config:\n' not in said
    assert 'error: ' in said
    above, block = said[: said.rindex('error: ')], said[said.rindex('error: ') :]
    assert len(above.splitlines()) <= 3, above
    assert len(block.splitlines()) < 25
    position = 0
    for part in text.split('|'):
        position = block.find(part, position)
        assert position >= 0, f'{part!r} is missing in {block!r}'
    assert {path: digest for path, digest in hashes(folder).items() if path in before} == before


def test_there_are_enough():
    assert len(CASES) >= 60
    assert len(CASES) + len(CALLS) >= 100


@pytest.mark.parametrize('task', TASKS)
def test_what_is_made_may_be_made_again_and_what_is_forced_is_kept(task, folders, tmp_path):
    folder = tmp_path / 'user'
    # Wrong commands may have tested something before.
    shutil.copytree(folders[task], folder, ignore=shutil.ignore_patterns('test'))
    export = ['export_student.py', 'kd.py', 'work_dirs/kd/trained.pth', '-o']
    for _ in range(2):
        ok(folder, *export, 'new.pth')
    assert not list(folder.glob('*.bak'))
    mine = (folder / 'mine.pkl').read_bytes()
    ok(folder, *export, 'mine.pkl', '--force')
    assert (folder / 'mine.pkl.bak').read_bytes() == mine
    record = sorted((folder / 'work_dirs/kd').glob('*.p*'))
    shutil.rmtree(folder / 'work_dirs/kd/test', ignore_errors=True)
    before = hashes(folder)
    for _ in range(2):
        ok(folder, 'test.py', 'kd.py', 'new.pth', '--result', 'result.json')
    result = json.loads((folder / 'result.json').read_text())
    assert result['checkpoint'] == 'new.pth'
    assert sorted((folder / 'work_dirs/kd').glob('*.p*')) == record
    assert {path: digest for path, digest in hashes(folder).items() if path in before} == before
    for _ in range(2):
        ok(folder, 'report.py', 'work_dirs/kd', '--out', 'new.html')
    assert not list(folder.glob('*.html.bak'))


@pytest.mark.parametrize('task', TASKS)
def test_a_new_training_moves_the_earlier_one_aside_and_says_what_it_trains(task, folders, tmp_path):
    folder = tmp_path / 'user'
    shutil.copytree(folders[task], folder)
    work = folder / 'work_dirs/kd'
    last = folder / (work / 'last_checkpoint').read_text()
    before = last.read_bytes()
    shutil.copy(folder / 'kd.py', work / 'kd.py')
    status, _ = run_tool(folder, 'train.py', 'kd.py', '--cfg-options', 'model.teacher.checkpoint=none.pth')
    assert status == 2
    assert last.read_bytes() == before
    assert not list(work.glob('earlier-*'))
    text = ok(folder, 'train.py', 'kd.py', '--cfg-options', 'train_cfg.val_interval=1')
    (aside,) = work.glob('earlier-*')
    assert (aside / last.name).read_bytes() == before
    assert (aside / 'kd.py').read_bytes() == (folder / 'kd.py').read_bytes()
    assert len([line for line in text.splitlines() if 'files of an earlier training are now in' in line]) == 1
    assert last.is_file()
    assert text.count('before the training') == 1
    assert 'train: 8 images' in text
    assert 'val: 4 images' in text
    assert {'det': 'boxes per class: ', 'seg': 'pixels per class in 8 of them: '}[task] in text
    assert 'distils mse: ' in text
    assert 'of the teacher, with FeatureMSELoss' in text
    assert 'Config:' not in text
    log = max(work.glob('2*/*.log'), key=lambda file: file.stat().st_mtime)
    assert 'Config:' in log.read_text()
    text = ok(folder, 'train.py', 'student.py', '--work-dir', 'work_dirs/fresh', '--resume')
    assert 'so the training STARTS FROM SCRATCH' in text


def test_the_log_has_the_traceback_and_an_option_shows_it(folders, tmp_path):
    folder = tmp_path / 'user'
    shutil.copytree(folders['det'], folder)
    words = ['train.py', 'nan_teacher.py', '--work-dir', 'work_dirs/nan']
    status, said = run_tool(folder, *words)
    (log,) = (folder / 'work_dirs/nan').glob('*/*.log')
    assert status == 2
    assert said.rstrip().endswith(f'(the log has the traceback: {log})')
    assert 'Traceback (most recent call last)' in log.read_text()
    status, said = run_tool(folder, *words, '--traceback')
    assert status == 1
    assert 'Traceback (most recent call last)' in said


def test_a_config_in_the_work_directory_stays_the_users(folders, tmp_path):
    folder = tmp_path / 'user'
    shutil.copytree(folders['seg'], folder)
    before = (folder / 'kd.py').read_bytes()
    ok(folder, 'train.py', 'kd.py', '--work-dir', '.')
    assert (folder / 'kd.py').read_bytes() == before
    assert Config.fromfile(folder / 'kd_run.py').train_cfg.max_iters == 2


def test_marks_are_invisible_to_readers(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    torch.save({'state_dict': {'a': torch.ones(3)}}, tmp_path / 'plain.pth')
    contents = {
        'a.pth': (tmp_path / 'plain.pth').read_bytes(),
        'a.json': json.dumps({'b': [1, 2]}, indent=2),
        'a.html': '<html></html>\n',
        'a.png': png(picture),
        'a.py': 'x = 1\n',
    }
    for name, content in contents.items():
        path = write_kept(tmp_path / name, content)
        assert is_unedited(path), name
        write_bytes(path, path.read_bytes().replace(b'1', b'2') if name == 'a.py' else b'x' + path.read_bytes())
        assert not is_unedited(path), name
        path.unlink()
        write_kept(path, content)
    assert torch.equal(load_checkpoint_file(tmp_path / 'a.pth')['state_dict']['a'], torch.ones(3))
    assert zipfile.ZipFile(tmp_path / 'a.pth').testzip() is None
    assert json.loads((tmp_path / 'a.json').read_text())['b'] == [1, 2]
    assert (cv2.imread(str(tmp_path / 'a.png'))[..., ::-1] == picture).all()
