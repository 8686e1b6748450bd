"""The result of a training, in the last lines on the terminal."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.files import here
from freekd_mm.report.configs import comparable, read_config
from freekd_mm.report.runs import LOGS, NoRunError, Run, read_run
from freekd_mm.runtime.config import is_distilled


def summary(work_dir: str | Path, config: str) -> str:
    """Returns metric, gain over the student alone if there is one, checkpoint, and the next command."""
    try:
        run = read_run(Path(work_dir), Path(work_dir).name)
    except NoRunError:  # a config without mmengine's own log
        return f'done: all is in {here(Path(work_dir))}'
    lines = [f'done: {run.iterations} iterations, in {here(run.folder)}']
    metric, best = run.best
    if metric and best:
        unit = 'epoch' if run.by_epoch else 'iteration'
        last = run.metric(metric.key)[-1]
        lines[0] += f'; {metric.label} {metric.cell(best[1])} at {unit} {best[0]}'
        lines[0] += f', {metric.cell(last[1])} at the end' if last != best else ''
        alone = student_alone(run)
        if alone and alone.best[1]:
            value = alone.best[1][1]
            gain = f'{(best[1] - value) * metric.factor:+.2f} over the student alone'
            lines.append(f'{gain}, which has {metric.cell(value)} ({here(alone.folder)})')
    if run.checkpoint is not None:
        lines.append(f'best checkpoint: {here(run.checkpoint)} ({short_hash(run.checkpoint)})')
        lines.append(f'next: {next_command(run, config)}')
    return '\n'.join(lines)


def next_command(run: Run, config: str) -> str:
    """Returns the command that takes the file to deploy out of a distillation, or tests a plain model."""
    distilled = is_distilled(run.config.get('model') or {})
    tool = Path(sys.argv[0]).with_name('export_student.py' if distilled else 'test.py')
    # By its name where the shell finds this Python by it.
    found = shutil.which(Path(sys.executable).name) == sys.executable
    python = Path(sys.executable).name if found else here(Path(sys.executable))
    words = [python, here(tool), config, here(run.checkpoint or run.folder)]
    if distilled:
        words += ['-o', here(run.folder / f'{run.folder.name}_student.pth')]
    return shlex.join(words)


def student_alone(run: Run) -> Run | None:
    """Returns the newest run beside a distillation that trained the same student, in the same way, without it."""
    if not is_distilled(run.config.get('model') or {}):
        return None
    own = _training_of(run.config)
    for file in sorted(run.folder.resolve().parent.glob(f'*/*/{LOGS}/config.py'), reverse=True):
        config = read_config(file)
        if not is_distilled(config.get('model') or {}) and _training_of(config) == own:
            try:
                found = read_run(file.parents[2], file.parents[2].name)
            except NoRunError:
                continue
            if found.best[0] == run.best[0]:
                return found
    return None


def _training_of(config: dict) -> dict[str, object]:
    return {name: value for name, value in comparable(config).items() if name.startswith(('model.', 'train_'))}
