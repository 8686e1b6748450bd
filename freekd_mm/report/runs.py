"""Reads what mmengine logged in a work directory: the sessions of one run, joined."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freekd_mm.checks import did_you_mean
from freekd_mm.compat.versions import pairwise, zip_equal
from freekd_mm.report.configs import read_config
from freekd_mm.report.environment import read_environment
from freekd_mm.report.metrics import is_known

LOGS = 'vis_data'
SCALARS = 'scalars.json'
#: In a line of an evaluation, but no result of it.
TIMES = ('data_time', 'time', 'step')


class NoRunError(ValueError):
    """A folder holds no logs of mmengine."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics at one point of a training.

    Attributes:
        step: As it was logged: the epoch or the iteration.
        iteration: Training iterations that were logged until then, as far as known.
        values: Metrics by name.
    """

    step: int
    iteration: int
    values: dict[str, float]


@dataclass
class Run:
    """One training run, the sessions before and after each resume joined.

    Attributes:
        name: What the report calls it.
        by_epoch: Whether evaluations are counted in epochs.
        train: Logged training values by iteration.
        evaluations: In order.
        config: The config as plain values; empty where there is none.
        environment: What the log says about the machine.
        tested: Metrics of the last test in the same folder.
        sessions: How many times it was started.
        notes: What a reader should know.
    """

    name: str
    by_epoch: bool = False
    train: dict[int, dict[str, float]] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    tested: dict[str, float] = field(default_factory=dict)
    sessions: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def iterations(self) -> int:
        """The last iteration that was logged."""
        return max(self.train, default=0)

    @property
    def epochs(self) -> int:
        """The last epoch that was logged; 0 for a run in iterations."""
        return int(max((row.get('epoch', 0) for row in self.train.values()), default=0))

    def series(self, key: str) -> list[tuple[float, float]]:
        """Returns (iteration, value) of a training value."""
        return [(step, row[key]) for step, row in sorted(self.train.items()) if key in row]

    def metric(self, key: str, epochs: bool) -> list[tuple[float, float]]:
        """Returns (epoch or iteration, value) of a metric."""
        found = [(e.step if epochs else e.iteration, e.values[key]) for e in self.evaluations if key in e.values]
        return [(step, value) for step, value in found if math.isfinite(value)]

    def train_keys(self) -> list[str]:
        """Returns the names of the training values, in the order of the log."""
        return list({key: None for row in self.train.values() for key in row})

    def metric_keys(self) -> list[str]:
        """Returns the names of the metrics, in the order of the log."""
        return list({key: None for evaluation in self.evaluations for key in evaluation.values})


@dataclass
class _Session:
    """What one start of a run logged."""

    train: dict[int, dict[str, float]] = field(default_factory=dict)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    broken: int = 0

    def epoch_of_first_line(self) -> int | None:
        row = self.train[min(self.train)] if self.train else {}
        return int(row['epoch']) if 'epoch' in row else None


def read_runs(folders: Sequence[str | Path], names: Sequence[str] | None = None) -> tuple[list[Run], list[str]]:
    """Reads work directories; returns the runs, and a line on each folder that is left out.

    Args:
        folders: Work directories of mmengine.
        names: What to call them; what tells their paths apart by default.

    Raises:
        FileNotFoundError: A folder is not there.
        NoRunError: None of them holds a log.
    """
    paths = [Path(folder) for folder in folders]
    if names is not None and len(names) != len(paths):
        raise ValueError(f'names should be {len(paths)}, one a work directory, but got {len(names)}')
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
    """Returns the last parts of the paths, as many as tell them apart."""
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
    run = Run(name, sessions=len(starts))
    _join(run, [_read_session(start) for start in starts])
    for start in starts:
        run.config = read_config(start / LOGS / 'config.py') or run.config
        run.environment = read_environment(start / f'{start.name}.log') or run.environment
        run.tested = _read_test(start / f'{start.name}.json') or run.tested
    run.notes += _state(run)
    return run


def _no_logs(folder: Path) -> str:
    inside = sorted({path.parents[1].name for path in folder.glob(f'*/*/{LOGS}')})
    if inside:
        return f'should be a work directory, but holds several: {", ".join(inside[:8])}; name those'
    return f'should hold <timestamp>/{LOGS}, as mmengine writes it, but has ' + (
        ', '.join(sorted(item.name for item in folder.iterdir())[:6]) or 'nothing in it'
    )


def _read_session(start: Path) -> _Session:
    """Reads the JSON lines of one start; a training value has a learning rate or an iteration, a metric has none."""
    session = _Session()
    file = start / LOGS / SCALARS
    if not file.is_file():
        file = next(iter(sorted((start / LOGS).glob('*.json'))), file)
    if not file.is_file():
        return session
    last = 0
    for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            session.broken += bool(line.strip())
            continue
        values = _numbers(row)
        if 'iter' in values or 'lr' in values:
            last = int(values.get('step', values.get('iter', last)))
            session.train.setdefault(last, {}).update(values)
        elif 'step' in values:
            own = {key: value for key, value in values.items() if key not in TIMES and is_known(key, value)}
            # By epochs in a run of iterations: mmengine counts none, and logs 0.
            step = int(values['step']) or last
            if own:
                session.evaluations.setdefault(step, {}).update(own)
    return session


def _numbers(row: Any) -> dict[str, float]:
    if not isinstance(row, dict):
        return {}
    return {str(k): v for k, v in row.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def _read_test(file: Path) -> dict[str, float]:
    if not file.is_file():
        return {}
    try:
        row = json.loads(file.read_text(encoding='utf-8'))
    except json.JSONDecodeError:
        return {}
    return {key: value for key, value in _numbers(row).items() if key not in TIMES}


def _join(run: Run, sessions: Sequence[_Session]) -> None:
    """Joins the sessions in the order of their start.

    A later one takes the place of all that was logged from its first step on: that part did not lead to its weights.
    """
    run.by_epoch = any(session.epoch_of_first_line() is not None for session in sessions)
    metrics: dict[int, dict[str, float]] = {}
    dropped = 0
    for session in sessions:
        if session.train:
            first = min(session.train)
            gone = [step for step in run.train if step >= first]
            dropped += len([step for step in gone if step not in session.train])
            for step in gone:
                del run.train[step]
            border = (session.epoch_of_first_line() or 0) if run.by_epoch else first
            metrics = {step: values for step, values in metrics.items() if step < border}
        run.train.update(session.train)
        metrics.update(session.evaluations)
    for step, values in sorted(metrics.items()):
        before = [i for i, row in run.train.items() if row.get('epoch', 0) <= step] if run.by_epoch else []
        run.evaluations.append(Evaluation(step, max(before, default=0) if run.by_epoch else step, values))
    broken = sum(session.broken for session in sessions)
    if broken:
        run.notes.append(f'{_count(broken, "line")} of the log cannot be read and are left out')
    if dropped:
        run.notes.append(
            f'{_count(dropped, "logged step")} of a session are left out: a later one went back before them'
        )


def _state(run: Run) -> list[str]:
    """Says whether the run came to its end."""
    if not run.train and not run.evaluations:
        return ['nothing was logged: the run ended before its first log line, or it is still starting']
    plan = run.config.get('train_cfg') or {}
    done, planned, unit = (
        (run.epochs, plan.get('max_epochs'), 'epoch')
        if run.by_epoch
        else (run.iterations, plan.get('max_iters'), 'iteration')
    )
    notes = []
    if isinstance(planned, int) and run.train and done < planned - (0 if run.by_epoch else _interval(run)):
        notes.append(f'it is not at its end: logged until {unit} {done} of {planned}')
    if not run.evaluations and 'loss_prompt_dissimilarity' not in run.train_keys():
        notes.append('there is no evaluation in its logs')
    return notes


def _interval(run: Run) -> int:
    """The largest step between two log lines: a run may end that much behind its last line."""
    steps = sorted(run.train)
    return max((b - a for a, b in pairwise(steps)), default=steps[0]) - 1


def _count(number: int, word: str) -> str:
    return f'{number} {word}' + ('s' if number != 1 else '')
