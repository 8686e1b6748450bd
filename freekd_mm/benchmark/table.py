"""The table and the plot: mean and spread, the paired difference to the student alone, the gap closed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Dict, NamedTuple, Tuple

from matplotlib.figure import Figure

from freekd_mm.benchmark.images import IMAGES_FILE, interval, p_value, pair_interval
from freekd_mm.benchmark.jobs import run_folder
from freekd_mm.benchmark.plan import STUDENT, TEACHER, Plan
from freekd_mm.benchmark.records import Record, by_kind, key, kind
from freekd_mm.text import table

#: Seed and kind of machine: only what agrees in both is paired.
Run = Tuple[int, str]
Values = Dict[Run, float]
HEADER = ('method', 'seeds', 'val {}', 'gain', 'gap closed', 'test {}', 'gain', 'gap closed', 'min/run')
COMPARED = ('test {}', 'pairs', 'difference', '95 % interval', 'with images', 'p')


class Summary(NamedTuple):
    """One method on one split."""

    values: Values  # the metric
    mean: float  # over the runs
    spread: float  # standard deviation over the runs, 0 for one run
    gains: Values  # difference to the student alone of the same seed and kind
    gain: float  # mean of these, NaN where no run is paired
    closed: float  # mean gain as a share of the gap between student and teacher, NaN where unknown


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
        # A student and the teacher of its own kind of machine.
        known = [run for run in gains if run[1] in teachers]
        gap = sum(teachers[run[1]] - alone[run] for run in known)
        numbers = own.values()
        summaries[method] = Summary(
            own,
            mean(numbers),
            stdev(numbers) if len(own) > 1 else 0.0,
            gains,
            mean(gains.values()) if gains else math.nan,
            sum(gains[run] for run in known) / gap if gap > 0 else math.nan,
        )
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

    Of a group the row counts that has the best mean on val, of those with the most runs; the cell says how many these
    are. Where all runs in the work directory left what each image adds, there is an interval over runs and images, too.
    """
    val, test = (values_of(records, plan, split) for split in ('val', 'test'))
    keys = {(record['method'], (record['seed'], kind(record))): key(record) for record in records}
    found = []
    for sides in plan.compare:
        names, shown = zip(*(_chosen(plan, side, val) for side in sides))
        paired = differences(*(test.get(name, {}) for name in names))
        if not paired:
            continue
        gains, images = list(paired.values()), ''
        if work_dir and plan.metric.split('/')[-1] in ('bbox_mAP', 'mIoU'):  # what each image adds is known of these
            runs = [[run_folder(work_dir, plan.task, keys[n, run]) for n in names] for run in paired]
            images = _range(pair_interval([[folder / IMAGES_FILE for folder in pair] for pair in runs], plan.factor))
        spread, p = (_range(interval(gains)), f'{p_value(gains):.2f}') if len(gains) > 1 else ('', '')
        found.append([' less '.join(shown), str(len(gains)), f'{mean(gains):+.1f}', spread, images, p])
    return found


def _chosen(plan: Plan, side: str, val: dict[str, Values]) -> tuple[str, str]:
    """Returns the row that is compared, and its title with the number of rows that it was chosen from."""
    group = [name for name, method in plan.methods.items() if method.group == side and name in val]
    best = max(group, key=lambda name: (len(val[name]), mean(val[name].values()))) if group else side
    rivals = [name for name in group if len(val[name]) == len(val[best])]
    return best, titles(plan).get(best, side) + (f' (best of {len(rivals)} in {side})' if len(rivals) > 1 else '')


def markdown(records: Sequence[Record], plan: Plan, work_dir: Path | None = None) -> str:
    """Returns the page of a plan: a table for each kind of machine, and what is compared."""
    page = [f'# {plan.title or plan.name}']
    unit = plan.unit or plan.metric
    header, compared_header = ([name.format(unit) for name in names] for names in (HEADER, COMPARED))
    for where, own in by_kind(records).items():
        page.append(f'## {where or "Machine not recorded"}\n\n{table(rows(own, plan), header, markdown=True)}')
    compared = comparisons(records, plan, work_dir)
    if compared:
        page.append(f'## Compared\n\n{table(compared, compared_header, markdown=True)}')
        page.append('Pairs share machine kind and seed. The best is chosen on val, reported on test; p: sign flips.')
    return '\n\n'.join(page) + '\n'


def _cells(summary: Summary | None) -> list[str]:
    if summary is None:
        return ['', '', '']
    gain = '' if math.isnan(summary.gain) else f'{summary.gain:+.1f}'
    if len(summary.gains) > 1:
        gain += f' ({_range(interval(list(summary.gains.values())))})'
    closed = '' if math.isnan(summary.closed) else f'{100 * summary.closed:.0f} %'
    spread = f' ± {summary.spread:.1f}' if summary.spread else ''
    return [f'{summary.mean:.1f}{spread}', gain, closed]


def _range(bounds: tuple[float, float] | None) -> str:
    return f'{bounds[0]:+.1f} to {bounds[1]:+.1f}' if bounds else ''


def write_plot(records: Sequence[Record], plan: Plan, file: Path) -> list[Path]:
    """Draws mean and spread on test, each seed as a dot, student alone and teacher as lines; returns what it wrote."""
    # The kind of machine that has the most lines: means over several would compare other seeds.
    where, largest = max(by_kind(records).items(), key=lambda item: len(item[1]))
    summaries, title = summarize(largest, plan, 'test'), titles(plan)
    names = sorted(set(summaries) & set(title) - {TEACHER}, key=lambda name: summaries[name].mean)
    if not names:
        return []
    figure = Figure((7, 0.8 + 0.32 * len(names)), layout='constrained')
    axes = figure.add_subplot(title=f'{plan.title or plan.name}\n{where}'.strip())
    for row, name in enumerate(names):
        summary = summaries[name]
        color = '#999999' if name == STUDENT else '#2a6fb0' if 'wavelet' in name else '#d98b2b'
        axes.errorbar(summary.mean, row, xerr=summary.spread, fmt='o', color=color, capsize=3)
        axes.plot(list(summary.values.values()), [row] * len(summary.values), '|', color=color, alpha=0.6)
    for name, style in ((STUDENT, ':'), (TEACHER, '--')):
        if name in summaries:
            axes.axvline(summaries[name].mean, color='#555555', linestyle=style, linewidth=1, label=title[name])
    axes.set_yticks(range(len(names)), [f'{title[name]} ({len(summaries[name].values)})' for name in names])
    axes.set_xlabel(f'test {plan.unit or plan.metric}, mean and standard deviation (number of seeds)')
    axes.legend(loc='lower right', fontsize='small')
    # Long names of rows leave less room than a title needs.
    figure.savefig(file, dpi=110, bbox_inches='tight')
    return [file]
