"""One step of the demo: an ordinary tool in its own process, with a progress bar, run once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from freekd_mm.compat.versions import zip_equal
from freekd_mm.files import write_text
from freekd_mm.report.runs import NoRunError, read_run
from freekd_mm.text import format_seconds


@dataclass(frozen=True)
class Step:
    """A step of the demo."""

    name: str  # of the step and of its log
    label: str  # what is printed about it
    command: Sequence[str]  # which anyone can run by hand
    work_dir: Path | None = None  # of a training: its log shows the progress


class Steps:
    """Runs the steps of a demo, which writes to ``folder``, in the repository; finished steps are not repeated."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, *steps: Step) -> None:
        """Runs the steps that are not done yet side by side, and shares the cores among them."""
        waiting = [step for step in steps if not self._file(step, 'done').is_file()]
        if not waiting:
            return
        start = time.monotonic()
        running = [self._start(step, max((os.cpu_count() or 1) // len(waiting), 1)) for step in waiting]
        label = ' and '.join(step.label for step in waiting)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=None)
            while any(process.poll() is None for process in running) and not any(process.poll() for process in running):
                time.sleep(0.5)
                parts = [progress(step.work_dir) for step in waiting if step.work_dir]
                if parts and all(total for _, total in parts):
                    done, total = map(sum, zip(*parts))
                    bar.update(task, completed=done, total=total)
        for step, process in zip_equal(waiting, running):
            if process.wait() != 0:
                log = self._file(step, 'log')
                tail = '\n'.join(log.read_text(errors='replace').splitlines()[-15:])
                raise SystemExit(f'{tail}\n\nthe demo stopped: {" ".join(step.command)} failed.\nThe whole log: {log}')
            write_text(self._file(step, 'done'), '')
        print(f'{label}: {format_seconds(time.monotonic() - start)}', file=sys.stderr)

    def _file(self, step: Step, kind: str) -> Path:
        return self.folder / f'{step.name}.{kind}'

    def _start(self, step: Step, threads: int) -> subprocess.Popen:
        environment = {'OMP_NUM_THREADS': str(threads), **os.environ, 'PYTHONWARNINGS': 'ignore'}
        with open(self._file(step, 'log'), 'a') as log:
            return subprocess.Popen(step.command, cwd=self.root, env=environment, stdout=log, stderr=subprocess.STDOUT)


def progress(work_dir: Path) -> tuple[int, int]:
    """Returns the iteration that the log in a work directory has reached, and that at the end, 0 if not known yet."""
    try:
        run = read_run(work_dir, work_dir.name)
    except (FileNotFoundError, NoRunError):
        return 0, 0
    return run.iterations, run.planned
