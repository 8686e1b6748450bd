"""make_config looks before it writes, says what it found, and loses no file."""

from __future__ import annotations

import copy
import hashlib
import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import cv2
import pytest
import tiny_configs
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from test_make_config import losses_of, save_teacher

from freekd_mm.files import check_output, here, write_kept
from freekd_mm.prompts.prompt_file import PromptFile, save_prompt

TOOL = str(Path(__file__).parents[2] / 'tools/make_config.py')
Tool = Callable[..., str]


@pytest.fixture(scope='module')
def pair(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path) -> Path:
    """A folder with a student, a teacher of one level more, and its checkpoint."""
    folder = tmp_path_factory.mktemp('pair')
    student = tiny_configs.detector(scenes_root, head='gfl')
    teacher = tiny_configs.detector(scenes_root, head='gfl', width=16, channels=24, levels=4)
    tiny_configs.write(folder / 'student.py', student)
    save_teacher(tiny_configs.write(folder / 'teacher.py', teacher), folder / 'teacher.pth')
    save_teacher(folder / 'student.py', folder / 'student.pth')
    return folder


@pytest.fixture
def tool(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Tool]:
    """Runs the tool in the folder and returns what it prints; the user's files stay as they are."""
    before = {path: digest(path) for path in pair.iterdir() if path.is_file()}

    def run(*words: str, student: str = 'student.py', teacher: str = 'teacher.py', weights: str = 'teacher.pth') -> str:
        names = [str(pair / name) for name in (student, teacher, weights)]
        out = [] if '-o' in words else ['-o', str(tmp_path / 'kd.py')]
        method = [] if '--method' in words else ['--method', 'wavelet']
        argv = [TOOL, *names[:2], '--teacher-checkpoint', names[2], *out, *method, *words]
        monkeypatch.setattr(sys, 'argv', argv)
        runpy.run_path(TOOL)['main']()
        return capsys.readouterr().out

    yield run
    assert {path: digest(path) for path in before} == before


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_says_what_it_found(tool: Tool, tmp_path: Path) -> None:
    text = tool('--method', 'mse')
    assert text.splitlines()[:3] == [
        'features:  neck of the student, neck of the teacher, 3 level(s)',
        'logits:    cannot be compared: the heads have [1, 1, 1] and [1, 1, 1, 1] anchors (other levels or anchors)',
        'left out:  1 level(s) of the teacher without a partner',
    ]
    assert f'next: python {here(Path(TOOL).with_name("train.py"))} {tmp_path / "kd.py"}' in text


def test_it_says_of_features_only_what_is_compared(pair: Path, tool: Tool, tmp_path: Path) -> None:
    text = tool('--method', 'dctkd')
    assert text.splitlines()[0] == 'features:  not compared'
    assert text.splitlines()[2] == 'left out:  nothing'
    assert 'Features' not in (tmp_path / 'kd.py').read_text()


def test_a_dry_run_writes_nothing(tool: Tool, tmp_path: Path) -> None:
    text = tool('--method', 'freekd', '--dry-run', '-v')
    assert not list(tmp_path.iterdir())
    assert "type='freekd_mm.FrequencyPromptHook'" in text
    assert "type='freekd_mm.DistilledModel'" in text
    assert 'backbone.layer2' in text
    assert '128x16x16' not in text.split('backbone.layer2', 1)[0]


def test_taps_and_image_of_the_user(tool: Tool, tmp_path: Path) -> None:
    tool('--features', 'backbone.layer2', 'backbone[0]', '--probe-size', '96', '160', '--method', 'freekd')
    cfg = Config.fromfile(tmp_path / 'kd.py')
    entry = cfg.model.distill.freekd
    assert (entry.student, entry.teacher) == ('backbone.layer2', 'backbone[0]')
    assert cfg.model.probe_size == (96, 160)
    assert '96x160' in (tmp_path / 'kd.py').read_text()
    hook = Config.fromfile(tmp_path / 'kd_prompt.py').custom_hooks[-1]
    assert (hook.modules, hook.probe_size) == ('backbone[0]', (96, 160))


def test_an_input_is_never_written_over(tool: Tool, pair: Path) -> None:
    for name in ('student.py', 'teacher.py'):
        for force in ([], ['--force']):
            with pytest.raises(FileExistsError, match=r'the output should not be one of the inputs'):
                tool('-o', str(pair / name), *force)


@pytest.mark.parametrize('name', ["it's a folder", 'a "folder"'])
def test_a_folder_with_quotes_in_its_name(name: str, pair: Path, tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / name / 'kd.py'
    tool('-o', str(out), '--method', 'freekd')
    cfg = Config.fromfile(out)
    assert Path(cfg.model.teacher.checkpoint).resolve() == (pair / 'teacher.pth').resolve()
    assert Path(cfg.frequency_prompt.cfg_path).resolve() == (tmp_path / name / 'kd_prompt.py').resolve()
    assert Path(Config.fromfile(cfg.frequency_prompt.cfg_path).load_from).resolve() == (pair / 'teacher.pth').resolve()


def test_only_files_that_nobody_edited_are_made_again(tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / 'kd.py'
    out.write_text('mine = 1\n')
    with pytest.raises(FileExistsError, match=r"kd.py' exists and was made or edited.*--force.*kd.py.bak"):
        tool()
    assert out.read_text() == 'mine = 1\n'
    tool('--force')
    assert (tmp_path / 'kd.py.bak').read_text() == 'mine = 1\n'
    tool('--method', 'mse')
    assert 'mse' in Config.fromfile(out).model.distill
    out.write_text(out.read_text().replace('mse=', 'edited='))
    with pytest.raises(FileExistsError, match=r'kd\.py\.bak1'):
        tool()
    tool('--force')
    assert 'edited=' in (tmp_path / 'kd.py.bak1').read_text()
    assert (tmp_path / 'kd.py.bak').read_text() == 'mine = 1\n'


def test_the_mark_is_that_of_the_text(tmp_path: Path) -> None:
    path = write_kept(tmp_path / 'a.py', 'a = 1\n')
    check_output(path, [])
    path.write_text(path.read_text().replace('1', '2', 1))
    with pytest.raises(FileExistsError):
        check_output(path, [])
    check_output(path, [], force=True)
    (tmp_path / 'empty').mkdir()
    for name in ('', 'empty'):
        with pytest.raises(IsADirectoryError, match=r"output should be a file, but '.*' is a folder: choose another"):
            check_output(tmp_path / name, [], force=True)
        check_output(tmp_path / name, [], force=True, folder=True)


WRONG: dict[str, tuple[dict[str, Any], list[str], type[Exception], str]] = {
    'no checkpoint': ({'weights': 'none.pth'}, [], FileNotFoundError, 'checkpoint should be an existing file, but got'),
    'checkpoint of another model': (
        {'weights': 'student.pth'},
        [],
        RuntimeError,
        'Check that config and checkpoint belong',
    ),
    'text for an output': ({}, ['-o', 'kd.txt'], ValueError, '-o should be the name of a Python file, like kd.py'),
    'levels that are not there': (
        {},
        ['--features', 'neck[0:9]'],
        ValueError,
        r"tap 'neck\[0:9\]' does not fit: the module returned 3 items",
    ),
    'no prompt': ({}, ['--prompt', 'none.pth'], FileNotFoundError, 'prompt should be an existing file'),
    'unknown module': ({}, ['--features', 'nekc'], ValueError, "has no 'nekc'.*Did you mean 'neck'"),
    'stage 1 of a method without': ({}, ['--method', 'mse', '--stage', 'prompt'], ValueError, "best, .* but got 'mse'"),
    **{
        f'no use: {words}': (
            {},
            words.split(),
            ValueError,
            f'{option} should change what is written, but does not with --method ',
        )
        for option, words in (
            ('--prompt-iters', '--prompt-iters 7'),
            ('--prompt-iters', '--method freekd --prompt p.pth --prompt-iters 7'),
            ('--prompt-dir', '--prompt-dir here'),
            ('--prompt-dir', '--method freekd --prompt p.pth --prompt-dir here'),
            ('--prompt', '--stage prompt --prompt p.pth'),
            ('--features', '--features neck --method dctkd'),
            ('a tap of the student in --features', '--features neck neck --stage prompt'),
            ('--inherit', '--stage prompt --inherit neck'),
            ('--no-inherit', '--stage prompt --no-inherit'),
            ('--no-head', '--no-head'),
            ('--no-head', '--stage prompt --no-head'),
            ('--unlabelled', '--stage prompt --unlabelled pictures'),
        )
    },
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_said_before_anything_is_written(case: str, tool: Tool, tmp_path: Path) -> None:
    files, words, error, text = WRONG[case]
    with pytest.raises(error, match=text):
        tool(*words, **files)
    assert not list(tmp_path.iterdir())
    if case == 'checkpoint of another model':
        tool('--no-check', **files)
        assert (tmp_path / 'kd.py').is_file()


def test_a_prompt_of_another_teacher(tool: Tool, tmp_path: Path) -> None:
    file = PromptFile({'neck[0]': torch.zeros(4, 2, 24)}, num_tokens=2)
    file.teacher, file.teacher_sha256 = 'other.pth', 'ff' * 32
    prompt = save_prompt(file, tmp_path / 'prompt.pth')
    with pytest.raises(ValueError, match=r'prompt .* should be made for the teacher .*but was made for other.pth'):
        tool('--prompt', str(prompt))


def test_a_prompt_of_another_kind(tool: Tool, pair: Path, tmp_path: Path) -> None:
    file = PromptFile({f'neck[{level}]': torch.zeros(4, 2, 24) for level in range(4)}, evidence='magnitude')
    file.teacher, file.teacher_sha256 = 'teacher.pth', digest(pair / 'teacher.pth')
    words = ['--prompt', str(save_prompt(file, tmp_path / 'prompt.pth'))]
    message = (
        r"--prompt should be of mode='paper' \(grouping 'band', evidence 'band'\) for freekd, but .*prompt.pth has "
        r"grouping 'level', evidence 'magnitude', as mode='selective' makes it"
    )
    with pytest.raises(ValueError, match=message):
        tool('--method', 'freekd', *words)
    assert not (tmp_path / 'kd.py').exists()
    for fitting in (['wavelet-prompt'], ['wavelet'], ['freekd', '--no-check']):
        tool('--method', *fitting, *words)


def test_a_smaller_teacher_is_a_warning(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr('freekd_mm.runtime.compatibility.warn', said.append)
    tool('--method', 'mse', student='teacher.py', teacher='student.py', weights='student.pth')
    assert 'are teacher and student swapped?' in said[0]


# What is wrong with the annotations, by a change of the file or of the config.
DATA: dict[str, tuple[Callable[[Path, dict], None], str]] = {
    'empty file': (lambda path, cfg: path.write_text(''), r"data that can be read, but '.*ann.json' cannot"),
    'broken file': (
        lambda path, cfg: path.write_text('{"images": ['),
        r"data that can be read, but '.*ann.json' cannot",
    ),
    'no annotations': (
        lambda path, cfg: change(path, annotations=[]),
        r'should have images with annotations, but .*ann.json. has none',
    ),
    'other classes': (
        lambda path, cfg: cfg['metainfo'].update(classes=('car', 'bus')),
        r'classes of train_dataloader should be among .* but car, bus of 2 are not; it has ',
    ),
    'capitals': (
        lambda path, cfg: cfg['metainfo'].update(classes=tuple(map(str.upper, cfg['metainfo']['classes']))),
        r'but STRIPED_BALL.* it has .*striped_ball.*\(capitals matter\)',
    ),
    'a class twice': (
        lambda path, cfg: cfg['metainfo'].update(classes=('gear', 'saw', 'gear')),
        r'classes of train_dataloader .* should have different names, but gear is there more than once',
    ),
    'a category twice in place of another': (
        lambda path, cfg: change(path, categories=[*content(path)['categories'][1:], {'id': 1, 'name': 'gear'}]),
        r'categories of .*ann.json. should have different names, but gear is there more than once',
    ),
    'no categories': (
        lambda path, cfg: path.write_text('{"images": [], "annotations": []}'),
        r"data that can be read, but .*ann.json. cannot: the key 'categories' is missing",
    ),
    'no sizes': (
        lambda path, cfg: change(path, images=[{'id': 1, 'file_name': 'a.png'}]),
        r"ann.json. cannot: the key 'height' is missing",
    ),
    'images': (
        lambda path, cfg: change(path, images=[dict(image, file_name='no.png') for image in content(path)['images']]),
        r'images of train_dataloader should be there, but 8 of 8 that were looked for are missing, .*no.png',
    ),
}


def content(path: Path) -> dict:
    return json.loads(path.read_text())


def change(path: Path, **parts: Any) -> None:
    path.write_text(json.dumps({**content(path), **parts}))


@pytest.mark.parametrize('case', DATA)
def test_data_that_cannot_be_trained_on(case: str, tool: Tool, scenes_root: Path, pair: Path, tmp_path: Path) -> None:
    config = copy.deepcopy(tiny_configs.detector(scenes_root, head='gfl'))
    annotations = tmp_path / 'ann.json'
    annotations.write_bytes((scenes_root / 'annotations/instances_train2017.json').read_bytes())
    dataset = config['train_dataloader']['dataset']
    dataset['ann_file'] = str(annotations)
    wrong, text = DATA[case]
    wrong(annotations, dataset)
    student = tiny_configs.write(tmp_path / 'wrong.py', config)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        tool(student=str(student))
    assert not (tmp_path / 'kd.py').exists()


@pytest.mark.parametrize(('task', 'head'), [('detector', 'bbox_head'), ('segmenter', 'decode_head')])
def test_labels_that_no_head_scores(task: str, head: str, scenes_root: Path) -> None:
    from freekd_mm.engine.preflight import check_data

    scope = {'detector': 'mmdet', 'segmenter': 'mmseg'}[task]
    config = {**copy.deepcopy(getattr(tiny_configs, task)(scenes_root)), 'default_scope': scope}
    config['model'][head]['num_classes'] = 2
    with pytest.raises(ValueError, match=r'num_classes of \w+Head should be more than \d+, a label of .* but got 2'):
        check_data(Config(config))


def test_label_maps_with_other_numbers(scenes_root: Path, tmp_path: Path) -> None:
    from freekd_mm.engine.preflight import check_data

    config = {**copy.deepcopy(tiny_configs.segmenter(scenes_root)), 'default_scope': 'mmseg'}
    dataset = config['train_dataloader']['dataset']
    folder = tmp_path / 'maps'
    shutil.copytree(scenes_root / dataset['data_prefix']['seg_map_path'], folder)
    dataset['data_prefix'] = {
        'img_path': str(scenes_root / dataset['data_prefix']['img_path']),
        'seg_map_path': str(folder),
    }
    check_data(Config(copy.deepcopy(config)))
    file = min(folder.glob('*labelTrainIds.png'))
    labels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    labels[0, :2] = 77, 255
    cv2.imwrite(str(file), labels)
    with pytest.raises(
        ValueError, match=r'classes of the training data should be more than 77, a label of .* but got 11'
    ):
        check_data(Config(config))


def test_label_maps_that_are_not_there(scenes_root: Path, tmp_path: Path) -> None:
    from freekd_mm.engine.preflight import check_data

    config = {**tiny_configs.segmenter(scenes_root), 'default_scope': 'mmseg'}
    check_data(Config(copy.deepcopy(config)))
    config['train_dataloader']['dataset']['seg_map_suffix'] = '_labels.png'
    with pytest.raises(FileNotFoundError, match=r'label maps of train_dataloader .* 8 of 8 .* missing'):
        check_data(Config(copy.deepcopy(config)))
    config['train_dataloader']['dataset']['img_suffix'] = '.bmp'
    with pytest.raises(ValueError, match=r'should have images with annotations, but .* has none'):
        check_data(Config(config))


class Strict(BaseDataset):
    """A user's own, without the options of mmengine's."""

    def __init__(self, ann_file: str, pipeline: list) -> None:
        super().__init__(ann_file, pipeline=pipeline)


class Deaf(BaseDataset):
    """A user's own, which passes no options on."""

    def __init__(self, ann_file: str, **_: object) -> None:
        super().__init__('', lazy_init=True)


@pytest.mark.parametrize('kind', [Strict, Deaf])
def test_data_sets_that_take_no_options_are_not_checked(kind: type) -> None:
    from freekd_mm.engine.preflight import check_data

    dataset = {'type': kind, 'ann_file': 'none.json', 'pipeline': []}
    assert check_data(Config({'train_dataloader': {'dataset': dataset}})) == []


def as_imports(config: dict[str, Any], path: Path) -> Path:
    """Writes a config in the style of imports: types are classes."""
    config = {key: value for key, value in config.items() if key != '_base_'}
    lines = ['from mmdet.models.detectors import GFL', '', "default_scope = 'mmdet'", tiny_configs.source(config)]
    path.write_text('\n'.join(lines).replace("{'type': 'GFL'", "{'type': GFL"))
    return path


@pytest.mark.parametrize('both', [False, True])
def test_configs_of_imports_are_inherited_by_their_like(
    both: bool, scenes_root: Path, pair: Path, tmp_path: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # mmengine 0.8 does not train without env_cfg.
    student = {**tiny_configs.detector(scenes_root, head='gfl'), 'work_dir': str(tmp_path / 'work'), 'env_cfg': {}}
    as_imports(student, tmp_path / 'student.py')
    teacher = pair / 'teacher.py'
    if both:
        config = tiny_configs.detector(scenes_root, head='gfl', width=16, channels=24, levels=4)
        teacher = as_imports({**config, 'env_cfg': {}}, tmp_path / 'teacher.py')
    (tmp_path / 'kd').mkdir()
    out = tmp_path / 'kd/kd.py'
    method = ['--method', 'freekd', '--prompt-iters', '1']
    tool('-o', str(out), *method, student=str(tmp_path / 'student.py'), teacher=str(teacher))
    assert 'from ..student import *' in out.read_text()
    stage1 = Config.fromfile(tmp_path / 'kd/kd_prompt.py')
    assert stage1.custom_hooks[-1].type == 'freekd_mm.FrequencyPromptHook'
    assert Path(stage1.load_from).resolve() == pair / 'teacher.pth'
    cfg = Config.fromfile(out)
    assert Path(cfg.frequency_prompt.cfg_path).resolve() == tmp_path / 'kd/kd_prompt.py'
    monkeypatch.chdir(tmp_path)
    cfg.model.distill.freekd.loss.prompt = None
    assert losses_of(cfg)['train/distill.loss_freekd'] > 0
    with pytest.raises(ValueError, match=r'should be made of Python names.*write -o into the same folder'):
        tool('-o', str(tmp_path / 'kd/kd.py'), student=str(awkward(tmp_path)))


def awkward(folder: Path) -> Path:
    path = folder / 'my-models' / 'student.py'
    path.parent.mkdir(exist_ok=True)
    path.write_text((folder / 'student.py').read_text())
    return path
