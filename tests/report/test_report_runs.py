"""Reading work directories: sessions are joined, broken and foreign ones are named, configs are not run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from html_checks import check_page

from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.report.build import write_report
from freekd_mm.report.configs import differences, read_config, text
from freekd_mm.report.runs import NoRunError, _read_log, read_run, read_runs


def write_session(work_dir: Path, stamp: str, rows: list[dict[str, Any]], config: str = '', tail: str = '') -> Path:
    folder = work_dir / stamp / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(json.dumps(row) + '\n' for row in rows) + tail)
    if config:
        (folder / 'config.py').write_text(config)
    return work_dir


def step(iteration: int, epoch: int | None = None, **values: float) -> dict[str, Any]:
    return {'lr': 0.1, **values, **({'epoch': epoch} if epoch else {}), 'iter': iteration, 'step': iteration}


def ap(value: float, at: int) -> dict[str, Any]:
    return {'coco/bbox_mAP': value, 'coco/bbox_mAP_l': -1.0, 'data_time': 0.1, 'time': 0.2, 'step': at}


def test_the_sessions_of_a_resumed_run_are_joined_and_the_later_one_wins(tmp_path: Path) -> None:
    first = [step(10, 1, loss=5.0), ap(0.1, 1), step(20, 2, loss=4.0), ap(0.2, 2), step(30, 3, loss=3.0)]
    second = [step(20, 2, loss=4.5), ap(0.25, 2), step(30, 3, loss=3.5), ap(0.3, 3)]
    write_session(tmp_path, '20260101_000000', first)
    write_session(tmp_path, '20260102_000000', second, tail='{"loss": 1, "st')
    run = read_run(tmp_path, 'run')
    assert run.series('loss') == [(10, 5.0), (20, 4.5), (30, 3.5)]
    assert run.metric('coco/bbox_mAP', epochs=True) == [(1, 0.1), (2, 0.25), (3, 0.3)]
    assert run.metric('coco/bbox_mAP', epochs=False) == [(10, 0.1), (20, 0.25), (30, 0.3)]
    assert run.metric_keys() == ['coco/bbox_mAP']
    assert len(run.logs) == 2


def test_what_a_later_session_went_back_before_is_no_part_of_the_run(tmp_path: Path) -> None:
    write_session(
        tmp_path, '1', [step(10, loss=5.0), {'mIoU': 30.0, 'step': 10}, step(20, loss=4.0), step(30, loss=3.0)]
    )
    write_session(tmp_path, '2', [step(10, loss=9.0)])
    run = read_run(tmp_path, 'run')
    assert run.series('loss') == [(10, 9.0)]
    assert run.evaluations == {}


def test_a_run_in_iterations_that_counts_evaluations_in_epochs_gets_their_iteration(tmp_path: Path) -> None:
    write_session(tmp_path, '1', [step(50), {'mIoU': 30.0, 'step': 0}, step(100), {'mIoU': 40.0, 'step': 0}])
    assert read_run(tmp_path, 'run').metric('mIoU', epochs=False) == [(50, 30.0), (100, 40.0)]


@pytest.mark.parametrize(('done', 'stopped'), [(3, True), (8, False)])
def test_a_run_that_died_half_way_says_so(tmp_path: Path, done: int, stopped: bool) -> None:
    rows = [step(10 * epoch, epoch, loss=1.0) for epoch in range(1, done + 1)]
    write_session(tmp_path, '1', [*rows, ap(0.1, done)], 'train_cfg = dict(max_epochs=8)\n')
    assert any('until epoch 3 of 8' in note for note in read_run(tmp_path, 'run').notes) is stopped


def test_a_run_that_logged_nothing_says_so(tmp_path: Path) -> None:
    write_session(tmp_path, '1', [])
    assert read_run(tmp_path, 'run').notes == [
        'nothing was logged: the run ended before its first log line, or it is still starting'
    ]


def test_foreign_folders_are_left_out_and_named(tmp_path: Path) -> None:
    write_session(tmp_path / 'runs/good', '1', [step(1, loss=1.0)])
    (tmp_path / 'runs/empty').mkdir()
    (tmp_path / 'foreign').mkdir()
    (tmp_path / 'foreign/notes.txt').write_text('x')
    runs, left_out = read_runs([tmp_path / 'runs/good', tmp_path / 'runs/empty', tmp_path / 'foreign'])
    assert [run.name for run in runs] == ['good']
    assert 'empty: should hold <timestamp>/vis_data' in left_out[0]
    assert 'but has none' in left_out[0]
    assert 'notes.txt' in left_out[1]
    with pytest.raises(NoRunError, match=r'foreign: should hold .*notes\.txt'):
        read_runs([tmp_path / 'foreign'])
    with pytest.raises(NoRunError, match=r'should be a work directory, but holds several: good; name those'):
        read_runs([tmp_path / 'runs'])
    with pytest.raises(FileNotFoundError, match=r"should be an existing folder, but got .*Did you mean 'good'\?"):
        read_runs([tmp_path / 'runs/goof'])
    with pytest.raises(ValueError, match='names should be 2, one per work directory, but got 1'):
        read_runs([tmp_path / 'work', tmp_path / 'work'], ['a', 'a'])
    with pytest.raises(ValueError, match='names should be 1, one per work directory, but got 2'):
        read_runs([tmp_path / 'foreign'], ['a', 'b'])


def test_runs_are_called_by_what_tells_their_folders_apart(tmp_path: Path) -> None:
    folders = [write_session(tmp_path / name / 'work', '1', [step(1)]) for name in ('a', 'b')]
    assert [run.name for run in read_runs(folders)[0]] == ['a/work', 'b/work']


def test_a_config_is_read_without_being_run(tmp_path: Path) -> None:
    file = tmp_path / 'config.py'
    file.write_text(
        f"import os\nopen({str(tmp_path / 'ran')!r}, 'w')\n"
        "a = dict(x=[1, -2.5, 'p' 'q'], y=dict({'k.l': dict(z=inf)}))\nb = os.getcwd()\n"
    )
    assert read_config(file) == {'a': {'x': [1, -2.5, 'pq'], 'y': {'k.l': {'z': 'inf'}}}, 'b': 'os.getcwd()'}
    assert not (tmp_path / 'ran').exists()
    file.write_text("a = dict(x=[1, -2.5, 'p' 'q'], **{'k.l': dict(y=None)})\nb = os.getcwd()\n")
    assert read_config(file) == {'a': {'x': [1, -2.5, 'pq'], 'k.l': {'y': None}}, 'b': 'os.getcwd()'}
    file.write_text("b = 1\na = {**b, 'b': 1, 'c': (2, 3)}\nd = dict(x=1, **b)\n")
    assert read_config(file) == {'b': 1, 'a': {'**': 'b', 'b': 1, 'c': (2, 3)}, 'd': {'x': 1, '**': 'b'}}
    file.write_text("a = {**dict(x=1), 'b': 1}\n")
    assert read_config(file) == {'a': {'x': 1, 'b': 1}}
    file.write_text('a = (')
    assert read_config(file) == {}


def test_a_distilled_student_differs_from_the_plain_one_in_the_distillation_alone() -> None:
    student = {'type': 'GFL', 'backbone': {'depth': 18}}
    loss = {'type': 'freekd_mm.WaveletLoss', 'channels': 256}
    distilled = {
        'type': 'freekd_mm.DistilledModel',
        'architecture': student,
        'teacher': {'cfg_path': '/home/me/project/teacher.py'},
        'distill': {'wavelet': {'loss': loss}},
    }
    configs = [{'model': student, 'work_dir': 'a'}, {'model': distilled, 'work_dir': 'b'}]
    rows = {name: values for name, *values in differences(configs)}
    assert all(name.startswith('distillation.') for name in rows)
    assert rows['distillation.distill.wavelet.loss.channels'][1] == '256'
    assert rows['distillation.teacher.cfg_path'][1] == '…/project/teacher.py'
    assert differences(configs[:1]) == [['model.type', 'GFL'], ['model.backbone.depth', '18']]


def test_values_are_shown_without_the_folders_of_a_machine() -> None:
    assert text('/home/me/data/coco/train') == '…/coco/train'
    assert text('https://download.openmmlab.com/a/b.pth') == 'https://download.openmmlab.com/a/b.pth'
    assert text(['/home/me/data/coco', 3]) == "['…/data/coco', 3]"


def test_versions_are_read_from_the_head_of_the_log(tmp_path: Path) -> None:
    rule = '-' * 60
    (tmp_path / 'a.log').write_text(
        f'2026/01/01 - mmengine - INFO - \n{rule}\nSystem environment:\n    Python: 3.11.7 (main) [GCC]\n'
        f'    GPU 0,1: NVIDIA H200\n    CUDA_HOME: /usr/local/cuda\n    PyTorch: 2.13.0\n{rule}\n\n'
        '    PyTorch: of the config below\n'
    )
    found, _ = _read_log(tmp_path / 'a.log')
    assert found.startswith('System environment:\n    Python: 3.11.7')
    assert found.endswith('PyTorch: 2.13.0')


def write_result(file: Path, checkpoint: Path, value: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {'coco/bbox_mAP': value, 'checkpoint': str(checkpoint), 'sha256': short_hash(checkpoint)}
    file.write_text(json.dumps(content))


def test_a_result_is_that_of_a_run_only_where_the_file_is(tmp_path: Path) -> None:
    run = write_session(tmp_path / 'student', '1', [step(1, 1, loss=1.0), ap(0.1, 1)])
    (run / 'epoch_1.pth').write_bytes(b'weights')
    (tmp_path / 'student_kd.pth').write_bytes(b'other weights')
    write_result(run / 'test/2/result.json', run / 'epoch_1.pth', 0.094)
    write_result(run / 'test/3/result.json', tmp_path / 'student_kd.pth', 0.126)
    words = check_page(write_report([run], tmp_path / 'r.html')[0])
    results, others = words.split('not the present files of these runs')
    assert '9.40' in results
    assert '12.60' not in results
    assert 'student/test/2/result.json' in results
    assert short_hash(run / 'epoch_1.pth') in results
    assert re.search(rf'student_kd\.pth \({short_hash(tmp_path / "student_kd.pth")}\)\s+box AP 12\.60', others)
    # A later training wrote another file of that name.
    (run / 'epoch_1.pth').write_bytes(b'new weights')
    assert [test.values['coco/bbox_mAP'] for test in read_run(run, 'run').tests if not test.own] == [0.094, 0.126]


def test_the_last_iteration_need_not_be_logged(tmp_path: Path) -> None:
    rows = [step(30, 1, loss=3.0), ap(0.1, 1), step(66, 2, loss=2.0), ap(0.2, 2)]
    run = write_session(tmp_path, '1', rows, 'train_cfg = dict(max_epochs=2)\n')
    log = '2026/01/01 - INFO - Epoch(train)  [1][ 30/36]  lr: 1.0e-01  loss: 3.0\n'
    (run / '1/1.log').write_text(log)
    assert _read_log(run / '1/1.log') == ('', 36)
    found = read_run(run, 'run')
    assert (found.iterations, found.epochs, found.notes) == (72, 2, [])
    assert found.metric('coco/bbox_mAP', epochs=False) == [(36, 0.1), (72, 0.2)]


def test_the_last_iteration_is_that_of_the_last_checkpoint(tmp_path: Path) -> None:
    run = write_session(tmp_path / 'run', '1', [step(50, loss=3.0)], 'train_cfg = dict(max_iters=70)\n')
    (run / 'iter_70.pth').write_bytes(b'')
    (run / 'last_checkpoint').write_text('/elsewhere/run/iter_70.pth')
    assert read_run(run, 'run').iterations == 70


def test_a_run_in_iterations_whose_log_counts_epochs(tmp_path: Path) -> None:
    """Only train_cfg was changed, and it was stopped."""
    config = 'train_cfg = dict(max_iters=700)\nlog_processor = dict(by_epoch=True)\n'
    run = read_run(write_session(tmp_path / 'run', '1', [step(50, loss=3.0, epoch=1)], config), 'run')
    assert run.by_epoch
    assert run.notes[0] == 'it is not finished: logged until iteration 50 of 700'
