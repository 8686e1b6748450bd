"""The demo's steps: each runs once, side by side with others, a failing one stops with its log, the bar reads logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import demo_steps as demo
from tools.demo_steps import progress, run_steps

WRITE = "import sys; open(sys.argv[1], 'a').write('x')"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools/write.py').write_text(WRITE)
    (tmp_path / 'tools/boom.py').write_text('1 / 0')
    return tmp_path


def test_steps_run_once_and_side_by_side(root: Path, capsys: pytest.CaptureFixture) -> None:
    for _ in range(2):
        run_steps(root, root / 'demo', {name: ('write', root / name) for name in ('one', 'two')})
    assert [(root / name).read_text() for name in ('one', 'two')] == ['x', 'x']
    assert capsys.readouterr().err.count('one and two: ') == 1


def test_a_failing_step_names_its_tool_and_log_and_runs_again(root: Path) -> None:
    with pytest.raises(SystemExit, match=r'(?s)ZeroDivisionError.*the demo stopped: .*boom.py failed\..*bad\.log'):
        run_steps(root, root / 'demo', {'good': ('write', root / 'good'), 'bad': ('boom',)})
    assert [path.name for path in (root / 'demo').glob('*.done')] == ['good.done']


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


def test_each_run_of_the_demo_tests_its_own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):  # noqa: N818 - it ends the demo behind its tests
        pass

    asked: list[str] = []

    def run_steps(root: Path, folder: Path, steps: dict) -> None:
        asked.extend(steps)
        if any(words[0] == 'test' for words in steps.values()):
            raise Enough

    monkeypatch.setattr(demo, 'run_steps', run_steps)
    monkeypatch.setattr(demo, 'last_checkpoint', lambda folder: folder / 'epoch_1.pth')
    for method, seed in (('mse', 0), ('mse', 1), ('wavelet', 0)):
        with pytest.raises(Enough):
            demo.run_demo('det', method, Path(__file__).parents[2], seed, tmp_path)
    tests = [name for name in asked if name.startswith('test_')]
    assert len(tests) == 3 * 4
    assert len(set(tests)) == len(tests)
