"""The last lines of a training: what it came to, and a next command that works."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from picture_cases import detector_runs
from test_report_runs import ap, step, write_session

from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.report.summary import summary

REPO = Path(__file__).parents[2]
STUDENT = "dict(type='GFL', backbone=dict(depth=18))"
DISTILLED = (
    f"dict(type='freekd_mm.DistilledModel', architecture={STUDENT}, teacher=dict(cfg_path='t.py'), distill=dict())"
)


@pytest.fixture(autouse=True)
def _tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', [str(REPO / 'tools/train.py')])


def run(folder: Path, values: list[float], model: str, epochs: int = 2) -> Path:
    rows = [
        row for epoch, value in enumerate(values, 1) for row in (step(5 * epoch, epoch, loss=1.0), ap(value, epoch))
    ]
    config = f'model = {model}\ntrain_cfg = dict(max_epochs={epochs})\n'
    write_session(folder, '20260101_000000', rows, config)
    for epoch in range(1, len(values) + 1):
        (folder / f'epoch_{epoch}.pth').write_bytes(bytes([epoch]))
    return folder


def test_the_gain_is_that_over_the_same_student_trained_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / 'work/alone', [0.2, 0.3], STUDENT)
    run(tmp_path / 'work/longer', [0.5, 0.6], STUDENT, epochs=24)
    run(tmp_path / 'work/other', [0.5, 0.6], STUDENT.replace('18', '34'))
    kd = run(tmp_path / 'work/kd', [0.36, 0.35], DISTILLED)
    said = summary(kd, 'kd.py').splitlines()
    assert said[0] == 'done: 10 iterations, in work/kd; box AP 36.00 at epoch 1, 35.00 at the end'
    assert said[1] == '+6.00 over the student alone, which has 30.00 (work/alone)'
    assert said[2] == f'best checkpoint: work/kd/epoch_1.pth ({short_hash(kd / "epoch_1.pth")})'
    assert said[3].endswith('export_student.py kd.py work/kd/epoch_1.pth -o work/kd/kd_student.pth')


def test_a_plain_run_is_tested_next_and_has_no_gain(tmp_path: Path) -> None:
    alone = run(tmp_path / 'alone', [0.2, 0.3], STUDENT)
    run(tmp_path / 'again', [0.1, 0.1], STUDENT)
    (alone / 'best_coco_bbox_mAP_epoch_2.pth').write_bytes(b'best')
    said = summary(alone, 'student.py')
    assert 'over the student' not in said
    assert f'test.py student.py {alone}/best_coco_bbox_mAP_epoch_2.pth' in said


def test_the_best_file_is_that_of_the_metric_that_is_shown(tmp_path: Path) -> None:
    alone = run(tmp_path / 'alone', [0.2, 0.3], STUDENT)
    (alone / 'best_coco_bbox_mAP_50_epoch_1.pth').write_bytes(b'best of another')
    assert f'best checkpoint: {alone}/epoch_2.pth' in summary(alone, 'student.py')
    (alone / 'epoch_2.pth').unlink()
    assert f'best checkpoint: {alone}/best_coco_bbox_mAP_50_epoch_1.pth' in summary(alone, 'student.py')
    (alone / 'best_coco_bbox_mAP_epoch_2.pth').write_bytes(b'best')
    assert f'best checkpoint: {alone}/best_coco_bbox_mAP_epoch_2.pth' in summary(alone, 'student.py')


def test_a_run_without_logs_is_no_error(tmp_path: Path) -> None:
    assert summary(tmp_path, 'x.py') == f'done: all is in {tmp_path}'


def test_the_next_command_works_from_where_the_user_stands(
    tmp_path: Path, scenes_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, kd = detector_runs(tmp_path, scenes_root)
    monkeypatch.chdir(tmp_path)
    said = summary(kd.work_dir, kd.config.name)
    assert '+0.00 over the student alone' in said
    command = shlex.split(said.splitlines()[-1].split('next: ')[1])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / command[-1]).is_file()
