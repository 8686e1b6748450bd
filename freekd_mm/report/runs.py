"""Reads what mmengine logged in a work directory: all parts of one run, joined."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.checks import check_file
from freekd_mm.compat.versions import zip_equal
from freekd_mm.engine.checkpoint_hook import last_checkpoint
from freekd_mm.engine.evaluation import RESULT
from freekd_mm.report.configs import read_config, stage1
from freekd_mm.report.metrics import Metric, is_known, main_metrics
from freekd_mm.text import some

LOGS = 'vis_data'
#: Stored with the metrics of an evaluation, but not a result.
TIMES = ('data_time', 'time', 'step')
#: Around what the log says about the machine.
RULE = re.compile(r'^-{30,}$', re.MULTILINE)
#: ``Epoch(train)  [1][ 30/36]``.
EPOCH = re.compile(r'Epoch\(train\)\s+\[\s*\d+\]\[\s*\d+/(\d+)\]')


class NoRunError(ValueError):
    """A folder holds no logs of mmengine."""


class Tested(NamedTuple):
    """The evaluation of a checkpoint."""

    file: Path  # the JSON file with the result
    checkpoint: Path  # the file that was tested
    sha256: str  # the first digits of its hash
    values: dict[str, float]  # metrics by name
    own: bool  # whether the tested file is one of the run's work directory, and still the same


@dataclass
class Run:
    """One training run, the parts before and after each resume joined."""

    name: str
    folder: Path = Path()
    by_epoch: bool = False  # whether evaluations are counted in epochs
    epoch_length: int = 0  # iterations per epoch, 0 if not known
    train: dict[int, dict[str, float]] = field(default_factory=dict)  # training values by iteration
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)  # metrics by epoch or iteration
    config: dict[str, Any] = field(default_factory=dict)  # as plain values; empty if there is none
    environment: str = ''  # what the log says about the machine
    tests: list[Tested] = field(default_factory=list)  # evaluations in the work directory
    logs: list[Path] = field(default_factory=list)  # from which all this was read

    @property
    def steps(self) -> int:
        """Epochs or iterations that were done: of the last evaluation or checkpoint."""
        checkpoint = last_checkpoint(self.folder)
        named = re.search(r'_(\d+)\.pth$', checkpoint.name) if checkpoint else None
        return max([*self.evaluations, int(named[1]) if named else 0])

    @property
    def iterations(self) -> int:
        """The last iteration, which may not have been logged."""
        return max([*self.train, self.iteration_of(self.steps)])

    @property
    def planned(self) -> int:
        """The iterations of the whole training; 0 if the config does not say."""
        plan = stage1(self.config) or self.config.get('train_cfg') or {}
        found = plan.get('max_iters') or (plan.get('max_epochs') or 0) * self.epoch_length
        return found if isinstance(found, int) else 0

    @property
    def epochs(self) -> int:
        """The last epoch, perhaps not at its end; 0 for a run in iterations."""
        return int(max([0, *(row.get('epoch', 0) for row in self.train.values())]))

    def series(self, key: str) -> list[tuple[float, float]]:
        """Returns (iteration, value) of a training value."""
        return [(step, row[key]) for step, row in sorted(self.train.items()) if key in row]

    def metric(self, key: str, epochs: bool | None = None) -> list[tuple[int, float]]:
        """Returns (epoch or iteration, value) of a metric; by default in the run's own unit."""
        own = epochs is None or epochs
        found = [(step, row[key]) for step, row in sorted(self.evaluations.items()) if key in row]
        return [(step if own else self.iteration_of(step), value) for step, value in found if math.isfinite(value)]

    def iteration_of(self, step: int) -> int:
        """Returns the training iterations until an evaluation."""
        return step * self.epoch_length if self.by_epoch else step

    @property
    def best(self) -> tuple[Metric | None, tuple[int, float] | None]:
        """The metric that the run is judged by, and its best (epoch or iteration, value)."""
        metric = next(iter(main_metrics(self.metric_keys())), None)
        points = self.metric(metric.key) if metric else []
        return metric, metric.best(points) if metric and points else None

    @property
    def checkpoint(self) -> Path | None:
        """The file with the weights of the best evaluation, else that of another metric, else the last one."""
        metric, point = self.best
        unit = 'epoch' if self.by_epoch else 'iter'
        of_metric = f'best_{metric.key.replace("/", "_")}_{unit}_' if metric else '-'
        best = sorted(self.folder.glob('best_*.pth'), key=lambda file: file.stat().st_mtime)
        own = [file for file in best if file.name.startswith(of_metric)]
        kept = self.folder / f'{unit}_{point[0] if point else 0}.pth'
        return own[-1] if own else kept if kept.is_file() else best[-1] if best else last_checkpoint(self.folder)

    @property
    def notes(self) -> list[str]:
        """What a reader should know: whether the run was finished."""
        if not self.train and not self.evaluations:
            return ['nothing was logged: the run ended before its first log line, or it is still starting']
        notes = []
        # A run may end some iterations after its last log line.
        steps = [0, *sorted(self.train)]
        behind = max((after - before for before, after in zip(steps, steps[1:])), default=0)
        if self.train and self.planned - self.iterations >= behind:
            done = f'iteration {self.iterations} of {self.planned}'
            if self.by_epoch and 'max_epochs' in self.config['train_cfg']:
                done = f'epoch {max(self.steps, self.epochs)} of {self.config["train_cfg"]["max_epochs"]}'
            notes.append(f'it is not finished: logged until {done}')
        if not self.evaluations and 'loss_prompt_dissimilarity' not in self.train_keys():
            notes.append('there is no evaluation in its logs')
        return notes

    def train_keys(self) -> list[str]:
        """Returns the names of the training values, in the order of the log."""
        return list({key: None for row in self.train.values() for key in row})

    def metric_keys(self) -> list[str]:
        """Returns the names of the metrics, in the order of the log."""
        return list({key: None for row in self.evaluations.values() for key in row})


def read_runs(folders: Sequence[str | Path], names: Sequence[str] | None = None) -> tuple[list[Run], list[str]]:
    """Reads work directories; returns the runs, and one line per folder that is left out."""
    # Without names the runs are called by what tells their paths apart.
    paths = [Path(folder) for folder in folders]
    if names is None:
        parts = [path.resolve().parts for path in paths]
        count = next(n for n in itertools.count(1) if len({own[-n:] for own in parts}) == len(set(parts)))
        names = ['/'.join(own[-count:]) for own in parts]
    if not len(names) == len(set(names)) == len(paths):
        raise ValueError(f'names should be {len(paths)}, one per work directory, but got {len(set(names))}')
    runs, left_out = [], []
    for path, name in zip_equal(paths, names):
        try:
            runs.append(read_run(path, name))
        except NoRunError as error:
            left_out.append(str(error))
    if not runs:
        raise NoRunError('\n'.join(left_out))
    return runs, left_out


def read_run(folder: Path, name: str) -> Run:
    """Reads one work directory."""
    check_file('a work directory', folder, folder=True)
    starts = [folder] if (folder / LOGS).is_dir() else sorted(p.parent for p in folder.glob(f'*/{LOGS}') if p.is_dir())
    if not starts:
        runs = sorted({path.parents[1].name for path in folder.glob(f'*/*/{LOGS}')})
        if runs:
            raise NoRunError(f'{name}: should be a work directory, but holds several: {some(runs)}; name those')
        held = some(sorted(item.name for item in folder.iterdir()))
        raise NoRunError(f'{name}: should hold <timestamp>/{LOGS}, as mmengine writes it, but has {held}')
    run = Run(name, folder, tests=_read_tests(folder))
    for start in starts:
        file = next(iter(sorted((start / LOGS).glob('*.json'), key=lambda file: file.name != 'scalars.json')), None)
        rows = _rows(file) if file else []
        if rows or not run.config:
            run.config = read_config(start / LOGS / 'config.py') or run.config
            environment, epoch_length = _read_log(start / f'{start.name}.log')
            run.environment, run.epoch_length = environment or run.environment, epoch_length or run.epoch_length
        if rows and file:
            run.logs.append(file)
            _add(run, rows)
    if not run.epoch_length:
        ends = [math.ceil(step / row['epoch']) for step, row in run.train.items() if row.get('epoch')]
        run.epoch_length = max(ends, default=0)
    return run


def _rows(file: Path) -> list[dict[str, float]]:
    """Returns the numbers of each line of a log that can be read: the last may be half written."""
    rows = []
    for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        kept = row.items() if isinstance(row, dict) else ()
        rows.append({k: v for k, v in kept if isinstance(v, (int, float)) and not isinstance(v, bool)})
    return [row for row in rows if {'iter', 'lr', 'step'} & set(row)]


def _add(run: Run, rows: Sequence[dict[str, float]]) -> None:
    """Adds what one start of a run logged."""
    # A training value has a learning rate or an iteration, an evaluation has none. What is logged after a resume
    # replaces all from its first step on, which did not lead to its weights.
    last = None
    for row in rows:
        if 'iter' in row or 'lr' in row:
            step = int(row.get('step', row.get('iter', last or 0)))
            if last is None:
                run.by_epoch = run.by_epoch or 'epoch' in row
                border = row.get('epoch', 0) if run.by_epoch else step
                run.train = {at: values for at, values in run.train.items() if at < step}
                run.evaluations = {at: values for at, values in run.evaluations.items() if at < border}
            last = step
            run.train.setdefault(step, {}).update(row)
        else:
            own = {key: value for key, value in row.items() if key not in TIMES and is_known(key, value)}
            if own:
                # By epochs in a run of iterations: mmengine counts none, and logs 0.
                run.evaluations.setdefault(int(row['step']) or last or 0, {}).update(own)


def _read_log(log: Path) -> tuple[str, int]:
    """Returns versions and devices, and the iterations of an epoch; empty and 0 if the log does not say them."""
    text = log.read_text(encoding='utf-8', errors='replace') if log.is_file() else ''
    epoch = EPOCH.search(text)
    return ''.join(RULE.split(text, 2)[1:2]).strip(), int(epoch[1]) if epoch else 0


def _read_tests(folder: Path) -> list[Tested]:
    """Returns the evaluations below a work directory that say which file they tested, oldest first."""
    found = []
    for file in sorted(folder.rglob(RESULT), key=lambda file: file.stat().st_mtime):
        try:
            row = json.loads(file.read_text(encoding='utf-8'))
            values = {key: value for key, value in row.items() if isinstance(value, (int, float)) and key not in TIMES}
            tested = folder / Path(row['checkpoint']).name
            own = tested.is_file() and short_hash(tested) == row['sha256']
            found.append(Tested(file, Path(row['checkpoint']), row['sha256'], values, own))
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return found


def inside(folder: Path, file: Path) -> str:
    """Returns a file's path from the work directory's name on, or its last two parts if it is elsewhere."""
    folder, file = folder.resolve(), file.resolve()
    return str(file.relative_to(folder.parent)) if folder in file.parents else '/'.join(('…', *file.parts[-2:]))
