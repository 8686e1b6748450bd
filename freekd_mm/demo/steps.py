"""One step of the demo: an ordinary tool in a process of its own, with a progress bar, run once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freekd_mm.compat.versions import zip_equal
from freekd_mm.files import write_text
from freekd_mm.progress import ProgressBar


@dataclass(frozen=True)
class Command:
    """A short step of the demo.

    Attributes:
        name: Name of the step.
        label: What is printed when it is done.
        line: The command line.
    """

    name: str
    label: str
    line: Sequence[str]


@dataclass(frozen=True)
class Training:
    """A training run of the demo.

    Attributes:
        name: Name of the step.
        label: What the bar says.
        config: Config file.
        work_dir: Work directory; its log tells how far the run is.
        iterations: Iterations until it is done, stage 1 included.
        seed: Seed of the run.
    """

    name: str
    label: str
    config: str
    work_dir: Path
    iterations: int
    seed: int = 0

    def command(self) -> list[str]:
        """Returns the command line, which anyone can run by hand."""
        return [
            *(sys.executable, 'tools/train.py', self.config, '--work-dir', str(self.work_dir), '--resume'),
            *('--cfg-options', f'randomness.seed={self.seed}', 'default_hooks.logger.interval=5'),
        ]


class Steps:
    """Runs the steps of a demo; what is done stays done.

    Args:
        root: The repository: the tools run there.
        folder: Where the demo writes.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        folder.mkdir(parents=True, exist_ok=True)

    def done(self, name: str) -> dict | None:
        """Returns the result of a step, or None while it is not done."""
        marker = self.folder / f'{name}.done.json'
        return json.loads(marker.read_text()) if marker.is_file() else None

    def finish(self, name: str, result: dict) -> None:
        """Marks a step as done."""
        write_text(self.folder / f'{name}.done.json', json.dumps(result) + '\n')

    def run(self, *commands: Command) -> None:
        """Runs short commands side by side, but for those that are done."""
        start = time.monotonic()
        waiting = [command for command in commands if self.done(command.name) is None]
        running = [self._start(command.name, command.line) for command in waiting]
        for command, process in zip_equal(waiting, running):
            self._check(process, command.name, command.line)
            seconds = time.monotonic() - start
            self.finish(command.name, {'seconds': seconds})
            print(f'{command.label}: {seconds:.0f}s', file=sys.stderr)

    def train(self, *trainings: Training) -> None:
        """Trains side by side, the cores shared among them, with one bar for all of them."""
        waiting = [training for training in trainings if self.done(training.name) is None]
        if not waiting:
            return
        start = time.monotonic()
        threads = max((os.cpu_count() or 1) // len(waiting), 1)
        running = [(training, self._start(training.name, training.command(), threads)) for training in waiting]
        bar = ProgressBar(' and '.join(training.label for training in waiting))
        total = sum(training.iterations for training in waiting)
        while any(process.poll() is None for _, process in running):
            time.sleep(1)
            bar(min(sum(iterations_done(training.work_dir) for training in waiting), total - 1), total)
            if any(process.poll() not in (None, 0) for _, process in running):
                break
        for training, process in running:
            self._check(process, training.name, training.command())
            self.finish(training.name, {'seconds': time.monotonic() - start})
        bar(total, total)

    def _start(self, name: str, command: Sequence[str], threads: int = 1) -> subprocess.Popen:
        environment = {
            **os.environ,
            'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', str(threads)),
            'PYTHONWARNINGS': 'ignore',
        }
        with open(self.folder / f'{name}.log', 'a') as log:
            return subprocess.Popen(command, cwd=self.root, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def _check(self, process: subprocess.Popen, name: str, command: Sequence[str]) -> None:
        if process.wait() != 0:
            log = self.folder / f'{name}.log'
            tail = '\n'.join(log.read_text(errors='replace').splitlines()[-15:])
            raise SystemExit(f'{tail}\n\nthe demo stopped: {" ".join(command)} failed.\nThe whole log: {log}')


def iterations_done(work_dir: Path) -> int:
    """Returns the iteration that the newest log in a work directory has reached."""
    newest = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not newest:
        return 0
    for line in reversed(newest[-1].read_text().splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:  # a line that is being written
            continue
        if 'iter' in entry:  # an evaluation's step is its epoch
            return int(entry['step'])
    return 0
