"""What a tool cannot use, like an output of another kind, is refused first; launchers say what they need."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
CASES = {
    'export_student.py kd.py trained.pth -o new.py': '-o should be a checkpoint, like new.pth, but got new.py',
    'export_student.py kd.py trained.pth -o folder': '-o should be a checkpoint, like folder.pth, but got folder',
    'make_config.py a.py b.py -o folder.py': '-o should be a file, but folder.py is a folder',
    'report.py work_dirs/kd --out new.pdf': '--out should be an HTML page, like new.html, but got new.pdf',
    'report.py work_dirs/kd --out folder.html': '--out should be an HTML page, like folder.html, but got folder.html',
    'robustness.py kd.py trained.pth --metric mIoU --out-dir new --severities 0': 'invalid choice: 0 (choose from 1, 2',
    'train.py kd.py --cfg-options a.b=1 teacher.pth': "--cfg-options should be key=value, but got 'teacher.pth'",
    'visualize.py kd.py trained.pth a.png --out v.pdf': '--out should be a page, like v.html, or a folder, but',
}


@pytest.mark.parametrize('command', CASES)
def test_names_of_outputs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ('folder', 'folder.py', 'folder.html'):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    tool, *words = command.split()
    monkeypatch.setattr(sys, 'argv', [tool, *words])
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOLS / tool))['parse_args']()
    assert CASES[command] in capsys.readouterr().err


@pytest.mark.parametrize(('script', 'words'), [('dist_train', 1), ('dist_test', 2), ('slurm_train', 3)])
def test_launchers_say_what_they_need(script: str, words: int) -> None:
    command = ['bash', TOOLS / f'{script}.sh', *['x'] * words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f'Usage: tools/{script}.sh ' in done.stderr
