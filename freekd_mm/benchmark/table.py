"""The table: mean and spread over the seeds, the paired difference to the student alone, the gap closed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Dict

from freekd_mm.benchmark.plan import STUDENT, TEACHER, Plan
from freekd_mm.benchmark.records import Record
from freekd_mm.text import table as text_table

Values = Dict[int, float]


@dataclass(frozen=True)
class Summary:
    """One method on one split.

    Attributes:
        values: The metric by seed.
        gains: Difference to the student alone with the same seed.
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
        """Mean paired difference, NaN where no seed is shared."""
        return mean(self.gains.values()) if self.gains else math.nan

    @property
    def gain_error(self) -> float:
        """Standard error of :attr:`gain`, NaN for one seed."""
        count = len(self.gains)
        return stdev(self.gains.values()) / math.sqrt(count) if count > 1 else math.nan


def values_of(records: Iterable[Record], plan: Plan, split: str) -> dict[str, Values]:
    """Returns the metric, in the unit of the table, by method and seed; failed runs have none."""
    values: dict[str, Values] = {}
    for record in records:
        metric = (record.get(split) or {}).get(plan.metric)
        if metric is not None and math.isfinite(metric):
            values.setdefault(record['method'], {})[record['seed']] = metric * plan.factor
    return values


def summarize(records: Iterable[Record], plan: Plan, split: str) -> dict[str, Summary]:
    """Returns a summary of every method that has a value."""
    values = values_of(records, plan, split)
    alone = values.get(STUDENT, {})
    teacher = values.get(TEACHER, {})
    summaries = {}
    for method, own in values.items():
        shared = sorted(set(own) & set(alone)) if method != TEACHER else []
        gains = {seed: own[seed] - alone[seed] for seed in shared}
        closed = math.nan
        if gains and teacher:
            gap = mean(teacher.values()) - mean(alone[seed] for seed in shared)
            closed = mean(gains.values()) / gap if gap > 0 else math.nan
        summaries[method] = Summary(own, {} if method == STUDENT else gains, math.nan if method == STUDENT else closed)
    return summaries


def markdown(records: Sequence[Record], plan: Plan) -> str:
    """Returns the Markdown table of a plan, methods in its order, failures included."""
    val, test = (summarize(records, plan, split) for split in ('val', 'test'))
    names = [TEACHER, STUDENT, *plan.methods]
    titles = {TEACHER: 'teacher', STUDENT: 'student alone', **{n: m.title for n, m in plan.methods.items()}}
    unit = plan.unit or plan.metric
    lines = [
        f'| method | seeds | val {unit} | gain | gap closed | test {unit} | gain | gap closed | min/run |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for name in names:
        own = [record for record in records if record['method'] == name]
        if not own:
            continue
        good = [record for record in own if 'error' not in record]
        failures = len(own) - len(good)
        seeds = str(len(good)) + (f' ({failures} failed)' if failures else '')
        minutes = f'{mean(record["train_seconds"] for record in good) / 60:.1f}' if good else ''
        cells = [cell for summary in (val.get(name), test.get(name)) for cell in _cells(summary)]
        lines.append(f'| {" | ".join([titles[name], seeds, *cells, minutes])} |')
    return '\n'.join(lines) + '\n'


def _cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return ['', '', '']
    gain = '' if math.isnan(summary.gain) else f'{summary.gain:+.1f}{_error(summary.gain_error)}'
    closed = '' if math.isnan(summary.closed) else f'{100 * summary.closed:.0f} %'
    return [f'{summary.mean:.1f}{_error(summary.spread)}', gain, closed]


def _error(value: float) -> str:
    return '' if math.isnan(value) else f' ± {value:.1f}'


def plain(records: Sequence[Record], plan: Plan) -> str:
    """Returns the same table for a terminal."""
    rows = [
        [cell.strip() for cell in line.strip().strip('|').split('|')] for line in markdown(records, plan).splitlines()
    ]
    return text_table(rows[2:], rows[0])
