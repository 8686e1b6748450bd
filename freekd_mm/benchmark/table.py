"""The table: mean and spread over the runs, the paired difference to the student alone, the gap closed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Dict, List, Tuple

from freekd_mm.benchmark.images import IMAGES_FILE, pair_interval
from freekd_mm.benchmark.jobs import run_folder
from freekd_mm.benchmark.plan import STUDENT, TEACHER, Plan
from freekd_mm.benchmark.records import Record, by_kind, key, kind
from freekd_mm.benchmark.statistics import interval, p_value
from freekd_mm.text import table as text_table

#: Seed and kind of machine: only what agrees in both is paired.
Run = Tuple[int, str]
Values = Dict[Run, float]
Table = Tuple[str, List[str], List[List[str]]]
HEADER = ('method', 'seeds', 'val {}', 'gain', 'gap closed', 'test {}', 'gain', 'gap closed', 'min/run')
COMPARED = ('test {}', 'pairs', 'difference', '95 % interval', 'with images', 'p')


@dataclass(frozen=True)
class Summary:
    """One method on one split."""

    values: Values  # the metric
    gains: Values  # difference to the student alone of the same seed and kind
    closed: float  # mean gain as a share of the gap between student and teacher, NaN where unknown

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return mean(self.values.values())

    @property
    def spread(self) -> float:
        """Standard deviation over the runs, NaN for one run."""
        return stdev(self.values.values()) if len(self.values) > 1 else math.nan

    @property
    def gain(self) -> float:
        """Mean paired difference, NaN where no run is paired."""
        return mean(self.gains.values()) if self.gains else math.nan


def values_of(records: Iterable[Record], plan: Plan, split: str) -> dict[str, Values]:
    """Returns the metric, in the unit of the table, by method and run; failed runs have none."""
    values: dict[str, Values] = {}
    for record in records:
        metric = (record.get(split) or {}).get(plan.metric)
        if metric is not None and math.isfinite(metric):
            values.setdefault(record['method'], {})[record['seed'], kind(record)] = metric * plan.factor
    return values


def differences(one: Values, other: Values) -> Values:
    """Returns ``one - other`` for the runs that both have."""
    return {run: one[run] - other[run] for run in sorted(set(one) & set(other))}


def summarize(records: Iterable[Record], plan: Plan, split: str) -> dict[str, Summary]:
    """Returns a summary of every method that has a value."""
    values = values_of(records, plan, split)
    alone = values.get(STUDENT, {})
    teachers = {where: value for (_, where), value in values.get(TEACHER, {}).items()}
    summaries = {}
    for method, own in values.items():
        gains = differences(own, alone) if method not in (STUDENT, TEACHER) else {}
        closed = math.nan
        # A student and the teacher of its own kind of machine.
        known = [run for run in gains if run[1] in teachers]
        gap = sum(teachers[run[1]] - alone[run] for run in known)
        if gap > 0:
            closed = sum(gains[run] for run in known) / gap
        summaries[method] = Summary(own, gains, closed)
    return summaries


def titles(plan: Plan) -> dict[str, str]:
    """Returns the names of the rows in their order."""
    return {TEACHER: 'teacher', STUDENT: 'student alone', **{n: m.title for n, m in plan.methods.items()}}


def rows(records: Sequence[Record], plan: Plan) -> list[list[str]]:
    """Returns the cells of the plan's rows, failures included."""
    splits = [summarize(records, plan, split) for split in ('val', 'test')]
    found = []
    for name, title in titles(plan).items():
        own = [record for record in records if record['method'] == name]
        good = [record for record in own if 'error' not in record]
        seeds = str(len(good)) + (f' ({len(own) - len(good)} failed)' if len(good) < len(own) else '')
        minutes = f'{mean(record["train_seconds"] for record in good) / 60:.1f}' if good else ''
        if own:
            found.append([title, seeds, *(cell for split in splits for cell in _cells(split.get(name))), minutes])
    return found


def comparisons(records: Sequence[Record], plan: Plan, work_dir: Path | None = None) -> list[list[str]]:
    """Returns the cells of the plan's comparisons, by runs of all kinds of machines; pairs are within one kind.

    Args:
        records: The newest lines.
        plan: Names what is compared; of a group the row with the best mean on val, of those with the most runs.
        work_dir: Where the runs lie; with what they left about each image the interval holds the images, too.
    """
    val, test = (values_of(records, plan, split) for split in ('val', 'test'))
    keys = {(record['method'], (record['seed'], kind(record))): key(record) for record in records}
    found = []
    for sides in plan.compare:
        rivals = [_best(plan, side, val) for side in sides]
        paired = differences(*(test.get(name, {}) for name in rivals))
        if not paired:
            continue
        gains, images = list(paired.values()), None
        if work_dir:
            folders = [[run_folder(work_dir, plan.task, keys[name, run]) for name in rivals] for run in paired]
            images = pair_interval([[folder / IMAGES_FILE for folder in pair] for pair in folders], plan.factor)
        named = [
            titles(plan)[name] + (f' (best of {side})' if side != name else '') for name, side in zip(rivals, sides)
        ]
        one = len(gains) == 1
        interval_of_runs, p = ('', '') if one else (_range(interval(gains)), f'{p_value(gains):.2f}')
        row = [' less '.join(named), str(len(gains)), f'{mean(gains):+.1f}', interval_of_runs]
        found.append([*row, _range(images) if images else '', p])
    return found


def _best(plan: Plan, side: str, val: dict[str, Values]) -> str:
    group = [name for name, method in plan.methods.items() if method.group == side and name in val]
    return max(group, key=lambda name: (len(val[name]), mean(val[name].values()))) if group else side


def markdown(records: Sequence[Record], plan: Plan, work_dir: Path | None = None) -> str:
    """Returns the Markdown page of a plan: a table for each kind of machine, and what is compared."""
    parts = [
        f'## {heading}\n\n{_markdown(header, cells)}' for heading, header, cells in _tables(records, plan, work_dir)
    ]
    return '\n\n'.join([f'# {plan.title or plan.name}', *parts, *_legend(records, plan)]) + '\n'


def plain(records: Sequence[Record], plan: Plan, work_dir: Path | None = None) -> str:
    """Returns the same for a terminal."""
    parts = [f'{heading}\n{text_table(cells, header)}' for heading, header, cells in _tables(records, plan, work_dir)]
    return '\n'.join([*parts, *_legend(records, plan)])


def _tables(records: Sequence[Record], plan: Plan, work_dir: Path | None) -> list[Table]:
    """Returns heading, header and cells of each table."""
    found = [(where or 'Machine not recorded', HEADER, rows(own, plan)) for where, own in by_kind(records).items()]
    compared = ('Compared', COMPARED, comparisons(records, plan, work_dir))
    unit = plan.unit or plan.metric
    return [(name, [text.format(unit) for text in head], cells) for name, head, cells in (*found, compared) if cells]


def _legend(records: Sequence[Record], plan: Plan) -> list[str]:
    compared = len({record['method'] for record in records} & set(plan.methods))
    text = f'Pairs share machine kind and seed. Rows chosen on val among {compared}, reported on test; p: sign flips.'
    return [text] if plan.compare else []


def _markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    # A bar in a title would begin a new cell.
    escaped = [[cell.replace('|', r'\|') for cell in line] for line in cells]
    return '\n'.join(f'| {" | ".join(line)} |' for line in (header, ['---'] * len(header), *escaped))


def _cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return ['', '', '']
    gain = '' if math.isnan(summary.gain) else f'{summary.gain:+.1f}'
    if len(summary.gains) > 1:
        gain += f' ({_range(interval(list(summary.gains.values())))})'
    closed = '' if math.isnan(summary.closed) else f'{100 * summary.closed:.0f} %'
    spread = '' if math.isnan(summary.spread) else f' ± {summary.spread:.1f}'
    return [f'{summary.mean:.1f}{spread}', gain, closed]


def _range(bounds: tuple[float, float]) -> str:
    return f'{bounds[0]:+.1f} to {bounds[1]:+.1f}'
