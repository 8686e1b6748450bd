"""The demo's steps: each runs once, a failing one stops with its log, the bar follows the logs of the runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from freekd_mm.demo.run import Step, Steps, progress

WRITE = "import sys; open(sys.argv[1], 'a').write('x')"


def test_a_step_runs_once(tmp_path: Path) -> None:
    out = tmp_path / 'out'
    for _ in range(2):
        steps = Steps(tmp_path, tmp_path / 'demo')
        steps.run(Step('write', 'wrote', [sys.executable, '-c', WRITE, str(out)]))
    assert out.read_text() == 'x'


def test_a_failing_step_names_its_command_and_log_and_runs_again(tmp_path: Path) -> None:
    steps = Steps(tmp_path, tmp_path / 'demo')
    with pytest.raises(SystemExit, match=r'(?s)ZeroDivisionError.*the demo stopped: .* failed\..*boom\.log'):
        steps.run(Step('boom', 'never', [sys.executable, '-c', '1 / 0']))
    assert not (tmp_path / 'boom.done').exists()


def test_trainings_run_side_by_side_with_one_bar_and_are_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    steps = Steps(tmp_path, tmp_path / 'demo')
    command = [sys.executable, '-c', WRITE]
    trainings = [Step(name, name, [*command, str(tmp_path / name)], tmp_path / 'work') for name in ('one', 'two')]
    for _ in range(2):
        steps.run(*trainings)
    assert [(tmp_path / name).read_text() for name in ('one', 'two')] == ['x', 'x']
    assert capsys.readouterr().err.count('one and two: ') == 1


def test_the_progress_is_read_from_the_newest_log(tmp_path: Path) -> None:
    assert progress(tmp_path) == (0, 0)
    for run, step in (('20260101_000000', 3), ('20260101_000001', 7)):
        folder = tmp_path / run / 'vis_data'
        folder.mkdir(parents=True)
        entries = [{'iter': step - 1, 'step': step - 1}, {'iter': step, 'step': step}]
        evaluation = {'coco/bbox_mAP': 0.5, 'step': 1}  # of the first epoch
        lines = [*map(json.dumps, (*entries, evaluation)), '{"iter": 9, "step": 9']  # the last is half written
        (folder / 'scalars.json').write_text('\n'.join(lines))
    assert progress(tmp_path) == (7, 0)
