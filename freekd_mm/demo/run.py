"""Runs the demo from the first picture to the exported student."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.progress import Progress

from freekd_mm.compat.versions import zip_equal
from freekd_mm.engine.checkpoint_hook import last_checkpoint
from freekd_mm.files import write_text
from freekd_mm.pages.page import parts
from freekd_mm.report.build import write_report
from freekd_mm.report.metrics import main_metrics
from freekd_mm.report.runs import NoRunError, read_run
from freekd_mm.text import format_seconds, table

# Stage 1 on the toy data: short, so that it takes little of the demo's time.
PROMPT_ITERATIONS = 100
#: Pictures with the predictions of all models.
PICTURES = 4
#: By task, the command that does the same on a real data set.
ON_REAL_DATA = {
    'det': 'python tools/train.py configs/wavelet/gfl_r50_r101.py',
    'seg': 'python tools/train.py configs/wavelet/pspnet_r18_r101.py',
}
HONEST = (
    'A generated toy data set, one seed, minutes of training: it shows the steps and that everything works. It is no\n'
    'benchmark, and a difference of a few points between two of its models may be chance.'
)


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


def run_demo(task: str, method: str, root: Path, seed: int = 0, work_dir: Path | None = None) -> list[list[str]]:
    """Trains teacher and student alone, distils, tests, exports; prints the table and returns its rows.

    The options are those of ``tools/demo.py``; ``root`` is the repository.
    """
    start = time.monotonic()
    base = (work_dir or root / 'work_dirs/demo') / task
    steps = Steps(root, base)
    teacher, student = (f'configs/demo/{task}_{role}.py' for role in ('teacher', 'student'))
    steps.run(_tool('scenes', 'drew the scenes', 'make_scenes', Config.fromfile(root / student).data_root))
    steps.run(_training(teacher, base / 'teacher'))

    alone, distilled = base / f'student_seed{seed}', base / f'{method}_seed{seed}'
    config, exported = base / 'configs' / f'{distilled.name}.py', base / f'{distilled.name}.pth'
    make = [student, teacher, '--method', method, '-o', config]
    make += ['--teacher-checkpoint', last_checkpoint(base / 'teacher')]
    make += ['--prompt-iters', PROMPT_ITERATIONS, '--prompt-dir', base / 'prompt']
    steps.run(_tool(f'make_config_{distilled.name}', f'wrote {config.name}', 'make_config', *make))
    trainings = [_training(student, alone, seed), _training(config, distilled, seed)]
    prompt = config.with_name(f'{config.stem}_prompt.py')
    if prompt.is_file():
        steps.run(trainings.pop(0), _training(prompt, base / 'prompt'))
    steps.run(*trainings)
    export = (config, last_checkpoint(distilled), '-o', exported)
    steps.run(_tool(f'export_{distilled.name}', f'exported {exported.name}', 'export_student', *export))

    tested: dict[str, tuple] = {
        'teacher': (teacher, last_checkpoint(base / 'teacher')),
        'student alone': (student, last_checkpoint(alone)),
        f'student, {method}': (config, last_checkpoint(distilled)),
        'the exported file in plain MM': (student, exported),
    }
    results = {label: base / f'test_{re.sub(", | ", "_", label)}.json' for label in tested}
    tests: list[Step] = []
    for label, out in results.items():
        words = (*tested[label], '--result', out, '--work-dir', out.with_suffix(''))
        tests.append(_tool(out.stem, f'tested {label}', 'test', *words))
    steps.run(*tests)
    rows = []
    for label, out in results.items():
        result = json.loads(out.read_text())
        metric = main_metrics(result)[0]
        file = f'{Path(result["checkpoint"]).name} ({result["sha256"]})'
        rows.append([label, metric.cell(result[metric.key]), *measure(root / tested[label][0]), file])
    header = ['model', metric.label, 'parameters', 'ms per image', 'file (SHA-256)']
    print('\n' + table(rows, header))
    print(f'\n{HONEST}\nOn real data: {ON_REAL_DATA[task]}')
    print(f'Everything is in {base}; {time.monotonic() - start:.0f} s in this run.')
    names = ['student alone', f'student, {method}', 'teacher']
    report = demo_report(base / 'report.html', [alone, distilled, base / 'teacher'], names, task, header, rows)
    print(f'The report, with curves and pictures: {report}')
    return rows


def demo_report(
    out: Path,
    folders: Sequence[Path],
    names: Sequence[str],
    task: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> Path:
    """Writes the report of a finished demo with its table, and the models' work directories; returns its path."""
    on_real_data = 'With the data set of this config in place (see docs/getting-started.md):'
    first = [
        parts.section('The demo', [parts.notes([HONEST]), parts.table(header, rows, 't' + 'n' * len(header))]),
        parts.section('The same on real data', [parts.paragraph(on_real_data), parts.code(ON_REAL_DATA[task])]),
    ]
    return write_report(folders, out, names, f'freekd_mm demo: {names[1]}', PICTURES, first)[0]


def _tool(name: str, label: str, tool: str, *words: object, work_dir: Path | None = None) -> Step:
    return Step(name, label, [sys.executable, f'tools/{tool}.py', *map(str, words)], work_dir)


def _training(config: str | Path, folder: Path, seed: int = 0) -> Step:
    options = ['--cfg-options', f'randomness.seed={seed}', 'default_hooks.logger.interval=5']
    words = (config, '--work-dir', folder, '--resume', *options)
    return _tool(folder.name, f'training {folder.name}', 'train', *words, work_dir=folder)


def measure(config: Path) -> list[str]:
    """Returns parameters and milliseconds per image of the plain model of a config, on one thread."""
    import torch
    from torch.utils.benchmark import Timer

    from freekd_mm.runtime.config import build_empty

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        model = build_empty(Config.fromfile(config)).eval()
        found = {'model': model, 'image': torch.zeros(1, 3, 160, 160)}
        seconds = Timer('model(image, None, mode="tensor")', globals=found).timeit(20).median
    return [f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M', f'{1000 * seconds:.0f}']
