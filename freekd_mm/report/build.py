"""Puts the report of one or several runs together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.compat.versions import zip_equal
from freekd_mm.pages.page import parts, sections, write_page
from freekd_mm.report.configs import EMPTY, differences, facts
from freekd_mm.report.curves import distillation_curves, loss_curves, metric_curves, optimisation_curves
from freekd_mm.report.metrics import main_metrics
from freekd_mm.report.models import shown_models
from freekd_mm.report.runs import Run, inside, read_runs
from freekd_mm.text import format_seconds

#: More differing settings than this are folded away.
OPEN_ROWS = 12


def write_report(
    folders: Sequence[str | Path],
    out: str | Path,
    names: Sequence[str] | None = None,
    title: str | None = None,
    pictures: int = 0,
    first: Sequence[Markup] = (),
) -> tuple[Path, list[str]]:
    """Writes the report of some work directories; returns its path and one line per folder that is left out.

    The options are those of ``tools/report.py``; the sections ``first`` are before all others.
    """
    runs, left_out = read_runs(folders, names)
    remarks = [f'left out: {line}' for line in left_out] + [f'{run.name}: {note}' for run in runs for note in run.notes]
    found = sections(
        [
            ('Results', [parts.notes(remarks), result_table(runs), *sources(runs)]),
            *(shown_models(runs, pictures) if pictures else ()),
            ('Metrics over the training', metric_curves(runs)),
            ('Losses', loss_curves(runs)),
            ('Distillation', distillation_curves(runs)),
            ('Optimisation', optimisation_curves(runs)),
            ('Settings', settings(runs)),
            ('Environment', _columns(runs, [run.environment for run in runs])),
        ]
    )
    title = title or ' / '.join(run.name for run in runs[:4]) + (' …' if len(runs) > 4 else '')
    count = f'{len(runs)} runs' if len(runs) != 1 else '1 run'
    return write_page(out, title, count, [*first, *found]), left_out


def result_table(runs: Sequence[Run]) -> Markup:
    """Returns the best and the last value of the metrics that count, and what the runs took."""
    columns: dict[str, list[str]] = {'run': [run.name for run in runs]}
    for metric in main_metrics({key: None for run in runs for key in run.metric_keys()}):
        found = [(run, run.metric(metric.key)) for run in runs]
        best = [(run, points and metric.best(points)) for run, points in found]
        columns[f'{metric.label}, best'] = [
            f'{metric.cell(point[1])} at {"epoch" if run.by_epoch else "iteration"} {point[0]}' if point else EMPTY
            for run, point in best
        ]
        columns[f'{metric.label}, last'] = [metric.cell(points[-1][1]) if points else EMPTY for _, points in found]
    for metric in main_metrics({key: None for run in runs for test in run.tests for key in test.values}):
        values = [[test.values[metric.key] for test in run.tests if metric.key in test.values] for run in runs]
        columns[f'{metric.label}, tested'] = [metric.cell(own[-1]) if own else EMPTY for own in values]
    for name, cells in zip_equal(('loss, last', 'trained', 'per step', 'GPU memory'), zip(*map(_cost, runs))):
        columns[name] = list(cells)
    filled = {name: cells for name, cells in columns.items() if any(cell != EMPTY for cell in cells)}
    return parts.table(list(filled), list(zip(*filled.values())), 't' + 'n' * len(filled))


def _cost(run: Run) -> list[str]:
    """Returns the last loss, how far the run came, seconds per step and memory."""
    loss = run.series('loss')
    times = [value for _, value in run.series('time') if math.isfinite(value)]
    step = sum(times) / len(times) if times else 0
    memory = max((value for _, value in run.series('memory')), default=0)
    done = f'{run.epochs} epochs, ' if run.epochs else ''
    return [
        f'{loss[-1][1]:.4g}' if loss else EMPTY,
        f'{done}{run.iterations} iterations' if run.iterations else EMPTY,
        (f'{1000 * step:.0f} ms' if step < 10 else format_seconds(step)) if times else EMPTY,
        f'{memory / 1024:.1f} GiB' if memory else EMPTY,
    ]


def sources(runs: Sequence[Run]) -> list[Markup]:
    """Returns the files that the numbers are from, and the evaluations of files that belong to no run."""
    rows, others = [], []
    for run in runs:
        files = [*(('training', log) for log in run.logs), *([('weights', run.checkpoint)] if run.checkpoint else [])]
        for test in run.tests:
            files += [('weights', run.folder / test.checkpoint.name), ('test', test.file)]
        rows += [[run.name, what, inside(run.folder, file), short_hash(file)] for what, file in dict.fromkeys(files)]
        for test in run.foreign_tests:
            shown = [f'{metric.label} {metric.cell(test.values[metric.key])}' for metric in main_metrics(test.values)]
            source = f'{inside(run.folder, test.file)} ({short_hash(test.file)})'
            others.append([f'{inside(run.folder, test.checkpoint)} ({test.sha256})', ', '.join(shown), source])
    found = []
    if rows:
        found.append(parts.remark('The numbers come from these files, with the first digits of their SHA-256:'))
        found.append(parts.table(['run', 'numbers', 'file', 'SHA-256'], rows, 'ttcc'))
    if others:
        found.append(parts.remark('Tested in these folders, but not the present files of these runs:'))
        found.append(parts.table(['file', 'result', 'from'], others, 'ttc'))
    return found


def settings(runs: Sequence[Run]) -> list[Markup]:
    """Returns what a reader asks for first, and every setting in which the runs differ."""
    found = _columns(runs, [facts(run.config) for run in runs])
    having = [run for run in runs if run.config]
    if len(having) < len(runs):
        missing = ', '.join(run.name for run in runs if not run.config)
        found.append(parts.remark(f'No readable config beside the logs of {missing}.'))
    rows = differences([run.config for run in having]) if len(having) > 1 else []
    if rows:
        shown = parts.table(['setting', *(run.name for run in having)], rows, 'c' * (1 + len(having)))
        if len(rows) <= OPEN_ROWS:
            found += [parts.paragraph('What differs between the runs:'), shown]
        else:
            found.append(parts.details(f'All {len(rows)} settings in which the runs differ', [shown]))
    return found


def _columns(runs: Sequence[Run], found: Sequence[dict[str, str]]) -> list[Markup]:
    """Returns a table with a row per name; runs with equal values share a column."""
    columns: dict[tuple, list[str]] = {}
    for run, values in zip_equal(runs, found):
        columns.setdefault(tuple(sorted(values.items())), []).append(run.name)
    names = list({name: None for values in found for name in values})
    header = ['', *('all runs' if len(columns) == 1 and len(runs) > 1 else ', '.join(own) for own in columns.values())]
    rows = [[name, *(dict(values).get(name, EMPTY) for values in columns)] for name in names]
    return [parts.table(header, rows, 't' * len(header))] if names else []
