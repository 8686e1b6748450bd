"""What Python has on Linux alone: elsewhere a run does without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import os, signal, sys
from multiprocessing import popen_fork  # what PyTorch and mmengine need of this system is imported before
import torch, mmengine.runner
for module, names in ((os, ('register_at_fork',)), (signal, ('sigtimedwait', 'pthread_sigmask'))):
    for name in names:
        delattr(module, name)
sys.modules['fcntl'] = None
from pathlib import Path
from toy_runs import last_state, toy_config, toy_run
config = toy_config(Path(sys.argv[1]), workers=1)
toy_run(config, {'type': 'ToyStop', 'behind': 7, 'signal': signal.SIGTERM})
"""


def test_a_run_without_them_stops_and_resumes(tmp_path):
    """As on Windows: no locks, no forks, no masks of signals."""
    tests = Path(__file__).parents[1]

    def python(code: str) -> subprocess.CompletedProcess:
        command = [sys.executable, '-c', code, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tests, check=False)

    first = python(CODE)
    assert first.returncode == 143, first.stdout + first.stderr
    assert 'cannot be locked (No locks available): make sure that no other run writes there' in first.stdout
    second = python(CODE.replace("{'type': 'ToyStop', 'behind': 7, 'signal': signal.SIGTERM}", "resume='auto'"))
    assert second.returncode == 0, second.stdout + second.stderr
    assert 'epoch_4.pth' in (tmp_path / 'work' / 'last_checkpoint').read_text()
