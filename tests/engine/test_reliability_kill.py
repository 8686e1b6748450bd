"""Real trainings, killed and resumed; ``python tests/kill_and_resume.py --kills 30`` does the same for longer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_killed_trainings_end_as_undisturbed_ones(tmp_path):
    """A distilled detector with a prompt, a distilled segmenter, and stage 1: one kill each, one while writing.

    Without data loading processes; the script alone has them too.
    """
    command = [sys.executable, str(TESTS / 'kill_and_resume.py'), '--kills', '3', '--workers', '0']
    environment = {**os.environ, 'PYTHONPATH': f'{TESTS.parent}', 'TMPDIR': str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert re.search(r'survived 3 kills \([1-3] while writing\)', done.stdout), done.stdout
    assert 'all ended bit for bit as undisturbed' in done.stdout


def test_two_processes_of_which_some_are_killed_end_as_undisturbed_ones(tmp_path):
    """One kill at a random moment, one while a checkpoint is written."""
    command = [sys.executable, str(TESTS / 'kill_others.py'), '--kills', '2', '--cases', 'ranks']
    environment = {**os.environ, 'PYTHONPATH': f'{TESTS.parent}', 'TMPDIR': str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert re.search(r'ranks: 2 kills, [12] of them while a file was written; \d trainings, 0 problems', done.stdout)
