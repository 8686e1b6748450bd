"""Reads what mmengine logged in a work directory: all parts of one run, joined."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freekd_mm.checks import did_you_mean
from freekd_mm.compat.versions import pairwise, zip_equal
from freekd_mm.report.configs import read_config
from freekd_mm.report.files import TIMES, Tested, last_checkpoint, read_tests
from freekd_mm.report.log import iterations_per_epoch, read_environment
from freekd_mm.report.metrics import Metric, is_known, main_metrics

LOGS = 'vis_data'


class NoRunError(ValueError):
    """A folder holds no logs of mmengine."""


@dataclass
class Run:
    """One training run, the parts before and after each resume joined.

    Attributes:
        name: What the report calls it.
        folder: Its work directory.
        by_epoch: Whether evaluations are counted in epochs.
        epoch_length: Iterations per epoch, 0 if not known.
        train: Logged training values by iteration.
        evaluations: Metrics by epoch or iteration, as they were logged.
        config: The config as plain values; empty if there is none.
        environment: What the log says about the machine.
        tests: Evaluations of checkpoints of this run.
        foreign_tests: Evaluations in the same folder, of files that are not this run's.
        logs: The files from which all this was read.
        notes: What a reader should know.
    """

    name: str
    folder: Path = Path()
    by_epoch: bool = False
    epoch_length: int = 0
    train: dict[int, dict[str, float]] = field(default_factory=dict)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    tests: list[Tested] = field(default_factory=list)
    foreign_tests: list[Tested] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Epochs or iterations that were done: of the last evaluation or checkpoint."""
        checkpoint = last_checkpoint(self.folder)
        named = re.search(r'_(\d+)\.pth$', checkpoint.name) if checkpoint else None
        return max([*self.evaluations, int(named[1]) if named else 0])

    @property
    def iterations(self) -> int:
        """The last iteration, which may not have been logged."""
        done = self.steps * self.epoch_length if self.by_epoch else self.steps
        return max([*self.train, done])

    @property
    def epochs(self) -> int:
        """The last epoch, perhaps not at its end; 0 for a run in iterations."""
        return int(max([0, *(row.get('epoch', 0) for row in self.train.values())]))

    def series(self, key: str) -> list[tuple[float, float]]:
        """Returns (iteration, value) of a training value."""
        return [(step, row[key]) for step, row in sorted(self.train.items()) if key in row]

    def metric(self, key: str, epochs: bool) -> list[tuple[int, float]]:
        """Returns (epoch or iteration, value) of a metric."""
        found = [(step, row[key]) for step, row in sorted(self.evaluations.items()) if key in row]
        return [(step if epochs else self.iteration_of(step), value) for step, value in found if math.isfinite(value)]

    def iteration_of(self, step: int) -> int:
        """Returns the training iterations until an evaluation; as far as they were logged if no log says more."""
        if not self.by_epoch or self.epoch_length:
            return step * (self.epoch_length or 1)
        return max([0, *(at for at, row in self.train.items() if row.get('epoch', 0) <= step)])

    @property
    def best(self) -> tuple[Metric | None, tuple[int, float] | None]:
        """The metric that the run is judged by, and its best (epoch or iteration, value)."""
        metric = next(iter(main_metrics(self.metric_keys())), None)
        points = self.metric(metric.key, self.by_epoch) if metric else []
        return metric, metric.best(points) if metric and points else None

    @property
    def checkpoint(self) -> Path | None:
        """The file with the weights of the best evaluation, or the last one if that was not kept."""
        best = sorted(self.folder.glob('best_*.pth'), key=lambda file: file.stat().st_mtime)
        step = self.best[1][0] if self.best[1] else 0
        kept = self.folder / f'{"epoch" if self.by_epoch else "iter"}_{step}.pth'
        return best[-1] if best else kept if kept.is_file() else last_checkpoint(self.folder)

    def train_keys(self) -> list[str]:
        """Returns the names of the training values, in the order of the log."""
        return list({key: None for row in self.train.values() for key in row})

    def metric_keys(self) -> list[str]:
        """Returns the names of the metrics, in the order of the log."""
        return list({key: None for row in self.evaluations.values() for key in row})


def read_runs(folders: Sequence[str | Path], names: Sequence[str] | None = None) -> tuple[list[Run], list[str]]:
    """Reads work directories; returns the runs, and one line per folder that is left out.

    Args:
        folders: Work directories of mmengine.
        names: What to call them; what tells their paths apart by default.

    Raises:
        FileNotFoundError: A folder does not exist.
        NoRunError: None of them holds a log.
    """
    paths = [Path(folder) for folder in folders]
    if names is not None and len(names) != len(paths):
        raise ValueError(f'names should be {len(paths)}, one per work directory, but got {len(names)}')
    runs, left_out = [], []
    for path, name in zip_equal(paths, names or short_names(paths)):
        try:
            runs.append(read_run(path, name))
        except NoRunError as error:
            left_out.append(str(error))
    if not runs:
        raise NoRunError('\n'.join(left_out))
    return runs, left_out


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the last parts of the paths, as many as are needed to distinguish them."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ['/'.join(own[-count:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(path) for path in paths]


def read_run(folder: Path, name: str) -> Run:
    """Reads one work directory."""
    if not folder.is_dir():
        near = [item.name for item in folder.parent.iterdir() if item.is_dir()] if folder.parent.is_dir() else []
        raise FileNotFoundError(
            f'a work directory should be an existing folder, but got {str(folder)!r}.{did_you_mean(folder.name, near)}'
        )
    starts = [folder] if (folder / LOGS).is_dir() else sorted(p.parent for p in folder.glob(f'*/{LOGS}') if p.is_dir())
    if not starts:
        raise NoRunError(f'{name}: {_no_logs(folder)}')
    run = Run(name, folder)
    for test in read_tests(folder):
        (run.tests if test.is_of(folder) else run.foreign_tests).append(test)
    broken = dropped = 0
    for start in starts:
        train, evaluations, unread = _read_session(start)
        broken += unread
        if train or evaluations or not run.config:
            run.config = read_config(start / LOGS / 'config.py') or run.config
            log = start / f'{start.name}.log'
            run.environment = read_environment(log) or run.environment
            run.epoch_length = iterations_per_epoch(log) or run.epoch_length
        dropped += _join(run, train, evaluations)
        run.logs += [_scalars(start)] if train or evaluations else []
    if broken:
        run.notes.append(f'{_count(broken, "line")} of the log cannot be read and are left out')
    if dropped:
        run.notes.append(f'{_count(dropped, "logged step")} are left out: the run was resumed from before them')
    run.notes += _state(run)
    return run


def _no_logs(folder: Path) -> str:
    inside = sorted({path.parents[1].name for path in folder.glob(f'*/*/{LOGS}')})
    if inside:
        return f'should be a work directory, but holds several: {", ".join(inside[:8])}; name those'
    return f'should hold <timestamp>/{LOGS}, as mmengine writes it, but has ' + (
        ', '.join(sorted(item.name for item in folder.iterdir())[:6]) or 'nothing in it'
    )


def _scalars(start: Path) -> Path:
    file = start / LOGS / 'scalars.json'
    return file if file.is_file() else next(iter(sorted((start / LOGS).glob('*.json'))), file)


def _read_session(start: Path) -> tuple[dict[int, dict[str, float]], dict[int, dict[str, float]], int]:
    """Returns training values, evaluations and the number of broken lines of one start.

    A training value has a learning rate or an iteration, an evaluation has none.
    """
    train: dict[int, dict[str, float]] = {}
    evaluations: dict[int, dict[str, float]] = {}
    last, broken, file = 0, 0, _scalars(start)
    for line in file.read_text(encoding='utf-8', errors='replace').splitlines() if file.is_file() else ():
        try:
            values = _numbers(json.loads(line))
        except json.JSONDecodeError:
            broken += bool(line.strip())
            continue
        if 'iter' in values or 'lr' in values:
            last = int(values.get('step', values.get('iter', last)))
            train.setdefault(last, {}).update(values)
        elif 'step' in values:
            own = {key: value for key, value in values.items() if key not in TIMES and is_known(key, value)}
            if own:
                # By epochs in a run of iterations: mmengine counts none, and logs 0.
                evaluations.setdefault(int(values['step']) or last, {}).update(own)
    return train, evaluations, broken


def _numbers(row: Any) -> dict[str, float]:
    if not isinstance(row, dict):
        return {}
    return {str(k): v for k, v in row.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def _join(run: Run, train: dict[int, dict[str, float]], evaluations: dict[int, dict[str, float]]) -> int:
    """Adds what was logged after a resume. It replaces all from its first step on, which did not lead to its weights.

    Returns the number of logged steps that were dropped.
    """
    dropped = 0
    if train:
        first = min(train)
        run.by_epoch = run.by_epoch or 'epoch' in train[first]
        border = train[first].get('epoch', 0) if run.by_epoch else first
        dropped = len([step for step in run.train if step >= first and step not in train])
        run.train = {step: row for step, row in run.train.items() if step < first}
        run.evaluations = {step: row for step, row in run.evaluations.items() if step < border}
    run.train.update(train)
    run.evaluations.update(evaluations)
    return dropped


def _state(run: Run) -> list[str]:
    """Says whether the run was finished."""
    if not run.train and not run.evaluations:
        return ['nothing was logged: the run ended before its first log line, or it is still starting']
    plan = run.config.get('train_cfg') or {}
    unit, planned = ('epoch', plan.get('max_epochs')) if run.by_epoch else ('iteration', plan.get('max_iters'))
    notes = []
    if isinstance(planned, int) and run.train:
        # A run may end some iterations after its last log line.
        steps = sorted(run.train)
        behind = max((b - a for a, b in pairwise(steps)), default=steps[0]) - 1
        done = max(run.steps, run.epochs) if run.by_epoch else run.iterations
        length = run.epoch_length if run.by_epoch else 1
        if done < planned if run.by_epoch and not length else planned * length - run.iterations > behind:
            notes.append(f'it is not finished: logged until {unit} {done} of {planned}')
    if not run.evaluations and 'loss_prompt_dissimilarity' not in run.train_keys():
        notes.append('there is no evaluation in its logs')
    return notes


def _count(number: int, word: str) -> str:
    return f'{number} {word}' + ('s' if number != 1 else '')
