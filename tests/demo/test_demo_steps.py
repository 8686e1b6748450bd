"""The demo's steps: each runs once, a failing one stops with its log, the bar follows the logs of the runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from freekd_mm.demo.steps import Command, Steps, Training, iterations_done

WRITE = "import sys; open(sys.argv[1], 'a').write('x')"


def test_a_step_runs_once(tmp_path: Path) -> None:
    out = tmp_path / 'out'
    for _ in range(2):
        steps = Steps(tmp_path, tmp_path / 'demo')
        steps.run(Command('write', 'wrote', [sys.executable, '-c', WRITE, str(out)]))
    assert out.read_text() == 'x'


def test_a_failing_step_names_its_command_and_log_and_runs_again(tmp_path: Path) -> None:
    steps = Steps(tmp_path, tmp_path / 'demo')
    with pytest.raises(SystemExit, match=r'(?s)ZeroDivisionError.*the demo stopped: .* failed\..*boom\.log'):
        steps.run(Command('boom', 'never', [sys.executable, '-c', '1 / 0']))
    assert steps.done('boom') is None


def test_trainings_run_side_by_side_and_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(self: Training) -> list[str]:
        return [sys.executable, '-c', WRITE, str(self.work_dir / 'out')]

    monkeypatch.setattr(Training, 'command', command)
    trainings = [Training(name, name, 'config.py', tmp_path / name, iterations=4) for name in ('one', 'two')]
    for training in trainings:
        training.work_dir.mkdir()
    steps = Steps(tmp_path, tmp_path / 'demo')
    for _ in range(2):
        steps.train(*trainings)
    assert [(tmp_path / name / 'out').read_text() for name in ('one', 'two')] == ['x', 'x']


def test_the_progress_is_read_from_the_newest_log(tmp_path: Path) -> None:
    assert iterations_done(tmp_path) == 0
    for run, step in (('20260101_000000', 3), ('20260101_000001', 7)):
        folder = tmp_path / run / 'vis_data'
        folder.mkdir(parents=True)
        entries = [{'iter': step - 1, 'step': step - 1}, {'iter': step, 'step': step}]
        evaluation = {'coco/bbox_mAP': 0.5, 'step': 1}  # of the first epoch
        lines = [*map(json.dumps, (*entries, evaluation)), '{"iter": 9, "step": 9']  # the last is half written
        (folder / 'scalars.json').write_text('\n'.join(lines))
    assert iterations_done(tmp_path) == 7


def test_the_command_is_one_that_a_user_can_run(tmp_path: Path) -> None:
    command = Training('student', 'student', 'configs/demo/det_student.py', tmp_path, 10, seed=3).command()
    assert command[1:3] == ['tools/train.py', 'configs/demo/det_student.py']
    assert 'randomness.seed=3' in command
