"""Puts the report of one or several runs together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from statistics import mean

from markupsafe import Markup

from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.compat.versions import zip_equal
from freekd_mm.pages.page import parts, write_page
from freekd_mm.report.configs import EMPTY, differences
from freekd_mm.report.curves import curves, distillation_curves, metric_curves
from freekd_mm.report.metrics import main_metrics
from freekd_mm.report.models import shown_models
from freekd_mm.report.runs import Run, inside, read_runs


def write_report(
    folders: Sequence[str | Path],
    out: str | Path,
    names: Sequence[str] | None = None,
    title: str | None = None,
    pictures: int = 0,
    first: Sequence[Markup] = (),
) -> tuple[Path, list[str]]:
    """Writes a report, with the tool's options, after the sections ``first``; returns its path and what is left out."""
    runs, left_out = read_runs(folders, names)
    remarks = [f'left out: {line}' for line in left_out] + [f'{run.name}: {note}' for run in runs for note in run.notes]
    sections = (
        ('Results', [parts.notes(remarks), result_table(runs), *sources(runs)]),
        *(shown_models(runs, pictures) if pictures else ()),
        ('Metrics over the training', metric_curves(runs)),
        ('Losses', curves(runs, lambda key: 'loss' in key and not key.startswith('distill.'))),
        ('Distillation', distillation_curves(runs)),
        ('Optimisation', curves(runs, lambda key: key in ('lr', 'grad_norm') or key.startswith('prompt/'))),
        ('Settings', settings(runs)),
        ('Environment', environments(runs)),
    )
    found = [parts.section(heading, inner) for heading, inner in sections if any(inner)]
    title = title or ' / '.join(run.name for run in runs[:4]) + (' …' if len(runs) > 4 else '')
    count = f'{len(runs)} runs' if len(runs) != 1 else '1 run'
    return write_page(out, title, count, [*first, *found]), left_out


def result_table(runs: Sequence[Run]) -> Markup:
    """Returns the best and the last value of the metrics that count, and what the runs took."""
    found = list(map(_results, runs))
    names = list({name: None for cells in found for name in cells})
    rows = [[run.name, *(cells.get(name, EMPTY) for name in names)] for run, cells in zip_equal(runs, found)]
    return parts.table(['run', *names], rows, 't' + 'n' * len(names))


def _results(run: Run) -> dict[str, str]:
    """Returns what is known of a run by the name of its column."""
    found = {}
    for metric in main_metrics(run.metric_keys()):
        points = run.metric(metric.key)
        if points:
            step, value = metric.best(points)
            unit = 'epoch' if run.by_epoch else 'iteration'
            found[f'{metric.label}, best'] = f'{metric.cell(value)} at {unit} {step}'
            found[f'{metric.label}, last'] = metric.cell(points[-1][1])
    tested = {key: value for test in run.tests if test.own for key, value in test.values.items()}
    found.update({f'{metric.label}, tested': metric.cell(tested[metric.key]) for metric in main_metrics(tested)})
    loss, memory = run.series('loss'), run.series('memory')
    times = [value for _, value in run.series('time') if math.isfinite(value)]
    if loss:
        found['loss, last'] = f'{loss[-1][1]:.4g}'
    if run.iterations:
        found['trained'] = (f'{run.epochs} epochs, ' if run.epochs else '') + f'{run.iterations} iterations'
    if times:
        seconds = mean(times)
        found['per step'] = f'{1000 * seconds:.0f} ms' if seconds < 10 else str(timedelta(seconds=round(seconds)))
    if memory:
        found['GPU memory'] = f'{max(value for _, value in memory) / 1024:.1f} GiB'
    return found


def sources(runs: Sequence[Run]) -> list[Markup]:
    """Returns the files that the numbers are from, and the evaluations of files that belong to no run."""
    rows, others = [], []
    for run in runs:
        files = [*(('training', log) for log in run.logs), *([('weights', run.checkpoint)] if run.checkpoint else [])]
        for test in run.tests:
            if test.own:
                files += [('weights', run.folder / test.checkpoint.name), ('test', test.file)]
                continue
            shown = [f'{metric.label} {metric.cell(test.values[metric.key])}' for metric in main_metrics(test.values)]
            source = f'{inside(run.folder, test.file)} ({short_hash(test.file)})'
            others.append([f'{inside(run.folder, test.checkpoint)} ({test.sha256})', ', '.join(shown), source])
        rows += [[run.name, what, inside(run.folder, file), short_hash(file)] for what, file in dict.fromkeys(files)]
    found = []
    if rows:
        found.append(parts.remark('The numbers come from these files, with the first digits of their SHA-256:'))
        found.append(parts.table(['run', 'numbers', 'file', 'SHA-256'], rows, 'ttcc'))
    if others:
        found.append(parts.remark('Tested in these folders, but not the present files of these runs:'))
        found.append(parts.table(['file', 'result', 'from'], others, 'ttc'))
    return found


def settings(runs: Sequence[Run]) -> list[Markup]:
    """Returns every setting in which the runs differ, or all of a single run."""
    having = [run for run in runs if run.config]
    found = [parts.remark(f'No readable config beside the logs of {run.name}.') for run in runs if not run.config]
    rows = differences([run.config for run in having])
    if not rows:
        return found
    shown = parts.table(['setting', *(run.name for run in having)], rows, 'c' * (1 + len(having)))
    what = f'All {len(rows)} settings' + (' in which the runs differ' if len(having) > 1 else '')
    return [*found, parts.details(what, [shown])]


def environments(runs: Sequence[Run]) -> list[Markup]:
    """Returns the versions and devices that mmengine logged, once for runs with the same."""
    names: dict[str, list[str]] = {}
    for run in runs:
        names.setdefault(run.environment, []).append(run.name)
    return [parts.details(', '.join(own), [parts.code(text)]) for text, own in names.items() if text]
