"""The table: mean and spread over the seeds, the paired difference to the student alone, the gap closed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Dict, Tuple

from freekd_mm.benchmark.plan import STUDENT, TEACHER, Plan
from freekd_mm.benchmark.records import Record
from freekd_mm.text import table

#: A seed, and the kind of machine where a table has several: it is another training on each.
Run = Tuple[int, str]
Values = Dict[Run, float]


@dataclass(frozen=True)
class Summary:
    """One method on one split.

    Attributes:
        values: The metric by run.
        gains: Difference to the student alone with the same seed on the same kind of machine.
        closed: Mean gain as a share of the gap between student and teacher, NaN where unknown.
    """

    values: Values
    gains: Values
    closed: float

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return mean(self.values.values())

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds, NaN for one seed."""
        return stdev(self.values.values()) if len(self.values) > 1 else math.nan

    @property
    def gain(self) -> float:
        """Mean paired difference, NaN where no run is shared."""
        return mean(self.gains.values()) if self.gains else math.nan

    @property
    def gain_error(self) -> float:
        """Standard error of :attr:`gain`, NaN for one seed."""
        count = len(self.gains)
        return stdev(self.gains.values()) / math.sqrt(count) if count > 1 else math.nan


def kinds_of(records: Iterable[Record]) -> list[str]:
    """Returns the instruction sets that the records name."""
    return sorted({instructions(record) for record in records} - {''})


def instructions(record: Record) -> str:
    """Returns the instruction set of the CPU, '' where a record does not say."""
    return (record.get('machine') or {}).get('instructions') or ''


def values_of(records: Sequence[Record], plan: Plan, split: str) -> dict[str, Values]:
    """Returns the metric, in the unit of the table, by method and run; failed runs have none."""
    mixed = len(kinds_of(records)) > 1
    values: dict[str, Values] = {}
    for record in records:
        metric = (record.get(split) or {}).get(plan.metric)
        if metric is not None and math.isfinite(metric):
            run = (record['seed'], instructions(record) if mixed else '')
            values.setdefault(record['method'], {})[run] = metric * plan.factor
    return values


def summarize(records: Sequence[Record], plan: Plan, split: str) -> dict[str, Summary]:
    """Returns a summary of every method that has a value."""
    values = values_of(records, plan, split)
    alone = values.get(STUDENT, {})
    teacher = values.get(TEACHER, {})
    summaries = {}
    for method, own in values.items():
        shared = sorted(set(own) & set(alone)) if method not in (STUDENT, TEACHER) else []
        gains = {run: own[run] - alone[run] for run in shared}
        closed = math.nan
        if gains and teacher:
            kinds = {kind for _, kind in shared}
            teachers = [value for (_, kind), value in teacher.items() if kind in kinds] or list(teacher.values())
            gap = mean(teachers) - mean(alone[run] for run in shared)
            closed = mean(gains.values()) / gap if gap > 0 else math.nan
        summaries[method] = Summary(own, gains, closed)
    return summaries


def rows(records: Sequence[Record], plan: Plan) -> tuple[list[list[str]], list[str]]:
    """Returns the cells of a plan's table, methods in its order, failures included, and its header."""
    val, test = (summarize(records, plan, split) for split in ('val', 'test'))
    titles = {TEACHER: 'teacher', STUDENT: 'student alone', **{n: m.title for n, m in plan.methods.items()}}
    unit = plan.unit or plan.metric
    found = []
    for name, title in titles.items():
        own = [record for record in records if record['method'] == name]
        if not own:
            continue
        good = [record for record in own if 'error' not in record]
        failures = len(own) - len(good)
        seeds = str(len(good)) + (f' ({failures} failed)' if failures else '')
        minutes = f'{mean(record["train_seconds"] for record in good) / 60:.1f}' if good else ''
        cells = [cell for summary in (val.get(name), test.get(name)) for cell in _cells(summary)]
        found.append([title, seeds, *cells, minutes])
    gain = ('gain', 'gap closed')
    return found, ['method', 'seeds', f'val {unit}', *gain, f'test {unit}', *gain, 'min/run']


def _cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return ['', '', '']
    gain = '' if math.isnan(summary.gain) else f'{summary.gain:+.1f}{_error(summary.gain_error)}'
    closed = '' if math.isnan(summary.closed) else f'{100 * summary.closed:.0f} %'
    return [f'{summary.mean:.1f}{_error(summary.spread)}', gain, closed]


def _error(value: float) -> str:
    return '' if math.isnan(value) else f' ± {value:.1f}'


def remark(records: Sequence[Record]) -> str:
    """Returns what a reader must know about the machines; '' where they are of one kind."""
    if len(kinds_of(records)) < 2:
        return ''
    counts = Counter(instructions(record) or 'not named' for record in records)
    listed = ', '.join(f'{kind} ({count} runs)' for kind, count in sorted(counts.items()))
    return (
        f'The runs are from CPUs with other instructions: {listed}. A seed is another training on each, so gains are '
        'taken within one kind alone.'
    )


def markdown(records: Sequence[Record], plan: Plan) -> str:
    """Returns the table of a plan as Markdown."""
    cells, header = rows(records, plan)
    head, *body = ('| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in (header, *cells))
    lines = [head, '|---' * len(header) + '|', *body, *(['', remark(records)] if remark(records) else [])]
    return '\n'.join(lines) + '\n'


def plain(records: Sequence[Record], plan: Plan) -> str:
    """Returns the same table for a terminal."""
    return '\n'.join(filter(None, (table(*rows(records, plan)), remark(records))))
