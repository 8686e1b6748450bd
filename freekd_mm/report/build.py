"""Puts the report of one or several runs together."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from freekd_mm.compat.versions import zip_equal
from freekd_mm.files import write_text
from freekd_mm.progress import format_seconds
from freekd_mm.report.configs import EMPTY, differences, facts
from freekd_mm.report.curves import (
    count_epochs,
    distillation_section,
    loss_section,
    metric_section,
    optimisation_section,
)
from freekd_mm.report.environment import SEED
from freekd_mm.report.metrics import Metric, main_metrics
from freekd_mm.report.page import Page, details, notes, paragraph, table
from freekd_mm.report.runs import Run, read_runs

#: More differing settings than this are folded away.
OPEN_ROWS = 12


def write_report(
    folders: Sequence[str | Path],
    out: str | Path,
    names: Sequence[str] | None = None,
    title: str | None = None,
) -> tuple[Path, list[str]]:
    """Writes the report of some work directories; returns its path and a line on each folder that is left out.

    Args:
        folders: Work directories of mmengine.
        out: The HTML file.
        names: What to call the runs; what tells their paths apart by default.
        title: Title of the page.
    """
    runs, left_out = read_runs(folders, names)
    page = Page(title or ' / '.join(run.name for run in runs[:4]) + (' …' if len(runs) > 4 else ''), subtitle(runs))
    remarks = [f'left out: {line}' for line in left_out] + remarks_on(runs)
    page.section('Results', notes(remarks), result_table(runs))
    add_sections(page, runs)
    return write_text(out, page.html()), left_out


def subtitle(runs: Sequence[Run]) -> str:
    """Returns how many runs there are, and when the page was written."""
    count = f'{len(runs)} runs' if len(runs) != 1 else '1 run'
    return f'{count}, written {time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}'


def remarks_on(runs: Sequence[Run]) -> list[str]:
    """Returns what a reader should know about each run."""
    return [f'{run.name}: {note}' for run in runs for note in run.notes]


def add_sections(page: Page, runs: Sequence[Run]) -> None:
    """Adds curves, settings and environment."""
    page.section('Metrics over the training', metric_section(runs))
    page.section('Losses', loss_section(runs))
    page.section('Distillation', distillation_section(runs))
    page.section('Optimisation', optimisation_section(runs))
    page.section('Settings', settings(runs))
    page.section('Environment', environment(runs))


def result_table(runs: Sequence[Run]) -> str:
    """Returns the best and the last value of the metrics that count, and what the runs took."""
    metrics = main_metrics({key: None for run in runs for key in run.metric_keys()})
    header, kinds = ['run'], 't'
    for metric in metrics:
        header += [f'{metric.label}, best', 'at', f'{metric.label}, last']
        kinds += 'nnn'
    tested = main_metrics({key: None for run in runs for key in run.tested})
    header += [f'{metric.label}, tested' for metric in tested] + ['loss, last', 'trained', 'a step', 'GPU memory']
    kinds += 'n' * len(tested) + 'nnnn'
    rows = []
    for run in runs:
        row = [run.name]
        for metric in metrics:
            row += _best(run, metric, count_epochs(runs))
        row += [metric.cell(run.tested[metric.key]) if metric.key in run.tested else EMPTY for metric in tested]
        rows.append([*row, *_cost(run)])
    return table(*_without_empty(header, rows, kinds))


def _best(run: Run, metric: Metric, epochs: bool) -> list[str]:
    points = run.metric(metric.key, epochs)
    if not points:
        return [EMPTY, EMPTY, EMPTY]
    best = (min if metric.smaller_is_better else max)(points, key=lambda point: point[1])
    unit = 'epoch' if epochs else 'iteration'
    return [metric.cell(best[1]), f'{unit} {best[0]:.0f}', metric.cell(points[-1][1])]


def _cost(run: Run) -> list[str]:
    """Returns the last loss, how far the run came, seconds a step and memory."""
    loss = run.series('loss')
    times = [value for _, value in run.series('time') if math.isfinite(value)]
    memory = max((value for _, value in run.series('memory')), default=0)
    done = f'{run.epochs} epochs, ' if run.epochs else ''
    return [
        f'{loss[-1][1]:.4g}' if loss else EMPTY,
        f'{done}{run.iterations} iterations' if run.iterations else EMPTY,
        _seconds(sum(times) / len(times)) if times else EMPTY,
        f'{memory / 1024:.1f} GiB' if memory else EMPTY,
    ]


def _seconds(value: float) -> str:
    return f'{1000 * value:.0f} ms' if value < 10 else format_seconds(value)


def _without_empty(
    header: Sequence[str], rows: Sequence[Sequence[str]], kinds: str
) -> tuple[list[str], list[list[str]], str]:
    """Leaves out the columns that no run fills."""
    kept = [column for column in range(len(header)) if column == 0 or any(row[column] != EMPTY for row in rows)]
    return (
        [header[column] for column in kept],
        [[row[column] for column in kept] for row in rows],
        ''.join(kinds[column] for column in kept),
    )


def settings(runs: Sequence[Run]) -> str:
    """Returns what a reader asks for first, and every setting in which the runs differ."""
    found = [facts(run.config) | {k: v for k, v in run.environment.items() if k == SEED} for run in runs]
    parts = [_table_of(runs, found)] if any(found) else []
    if not all(run.config for run in runs):
        missing = ', '.join(run.name for run in runs if not run.config)
        parts.append(paragraph(f'No readable config beside the logs of {missing}.', soft=True))
    having = [run for run in runs if run.config]
    rows = differences([run.config for run in having]) if len(having) > 1 else []
    if rows:
        shown = table(
            ['setting', *(run.name for run in having)],
            [[name, *values] for name, values in rows],
            'c' * (1 + len(having)),
        )
        if len(rows) <= OPEN_ROWS:
            parts.append(paragraph('What differs between the runs:') + shown)
        else:
            parts.append(details(f'All {len(rows)} settings in which the runs differ', shown))
    return ''.join(parts)


def environment(runs: Sequence[Run]) -> str:
    """Returns versions and devices, as the logs name them."""
    found = [{k: v for k, v in run.environment.items() if k != SEED} for run in runs]
    return _table_of(runs, found) if any(found) else ''


def _table_of(runs: Sequence[Run], found: Sequence[dict[str, str]]) -> str:
    """Returns a table with a row a name; runs that agree in all share a column."""
    columns: dict[tuple, list[str]] = {}
    for run, values in zip_equal(runs, found):
        columns.setdefault(tuple(sorted(values.items())), []).append(run.name)
    names = list({name: None for values in found for name in values})
    header = ['', *('all runs' if len(columns) == 1 and len(runs) > 1 else ', '.join(own) for own in columns.values())]
    rows = [[name, *(dict(values).get(name, EMPTY) for values in columns)] for name in names]
    return table(header, rows)
