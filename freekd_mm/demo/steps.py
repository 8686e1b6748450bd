"""One step of the demo: an ordinary tool in its own process, with a progress bar, run once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freekd_mm.compat.versions import zip_equal
from freekd_mm.files import write_text
from freekd_mm.progress import ProgressBar, format_seconds
from freekd_mm.report.runs import NoRunError, read_run


@dataclass(frozen=True)
class Step:
    """A step of the demo."""

    name: str  # of the step and of its log
    label: str  # what is printed about it
    command: Sequence[str]  # which anyone can run by hand
    work_dir: Path = Path()  # for a training: its log shows the progress
    iterations: int = 0  # for a training


class Steps:
    """Runs the steps of a demo, which writes to ``folder``, in the repository; finished steps are not repeated."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, *steps: Step) -> None:
        """Runs the steps that are not done yet side by side, and shares the cores among them."""
        waiting = [step for step in steps if not self._marker(step).is_file()]
        if not waiting:
            return
        start, total = time.monotonic(), sum(step.iterations for step in waiting)
        threads = max((os.cpu_count() or 1) // len(waiting), 1)
        running = [self._start(step, threads) for step in waiting]
        label = ' and '.join(step.label for step in waiting)
        bar = ProgressBar(label)
        while any(process.poll() is None for process in running) and not any(process.poll() for process in running):
            time.sleep(1 if total else 0.1)
            if total:
                bar(min(sum(iterations_done(step.work_dir) for step in waiting), total - 1), total)
        for step, process in zip_equal(waiting, running):
            if process.wait() != 0:
                log = self.folder / f'{step.name}.log'
                tail = '\n'.join(log.read_text(errors='replace').splitlines()[-15:])
                raise SystemExit(f'{tail}\n\nthe demo stopped: {" ".join(step.command)} failed.\nThe whole log: {log}')
            write_text(self._marker(step), '')
        if total:
            bar(total, total)
        else:
            print(f'{label}: {format_seconds(time.monotonic() - start)}', file=sys.stderr)

    def _marker(self, step: Step) -> Path:
        return self.folder / f'{step.name}.done'

    def _start(self, step: Step, threads: int) -> subprocess.Popen:
        environment = {'OMP_NUM_THREADS': str(threads), **os.environ, 'PYTHONWARNINGS': 'ignore'}
        with open(self.folder / f'{step.name}.log', 'a') as log:
            return subprocess.Popen(step.command, cwd=self.root, env=environment, stdout=log, stderr=subprocess.STDOUT)


def iterations_done(work_dir: Path) -> int:
    """Returns the iteration that the log in a work directory has reached."""
    try:
        return read_run(work_dir, work_dir.name).iterations
    except (FileNotFoundError, NoRunError):
        return 0
