"""The curves of runs: metrics, losses, and what distillation logs for each level and band."""

from __future__ import annotations

import re
from collections.abc import Sequence

from freekd_mm.compat.versions import remove_prefix
from freekd_mm.report.charts import Line, bar_chart, line_chart
from freekd_mm.report.metrics import describe, is_main
from freekd_mm.report.page import charts, details, heading, legend, paragraph
from freekd_mm.report.runs import Run

#: ``distill.<entry>.<term>``, as the distillation logs the parts of a loss.
TERM = re.compile(r'^distill\.(?P<entry>\w+)\.(?P<term>.+)$')
LEVEL = re.compile(r'^level(?P<level>\d+)(?:/(?P<band>.+))?$')
#: Logged with the losses, but no curve of the training.
OTHERS = ('base_lr', 'time', 'data_time', 'memory', 'epoch', 'iter', 'step')
BANDS = {'low': 'low band', 'high': 'high bands', '': 'all bands'}


def count_epochs(runs: Sequence[Run]) -> bool:
    """Whether all evaluations can be shown over epochs."""
    return all(run.by_epoch for run in runs if run.evaluations)


def metric_section(runs: Sequence[Run]) -> str:
    """Returns the metrics, those that count first; bars where no run has more than one evaluation."""
    keys = list({key: None for run in runs for key in run.metric_keys()})
    if not keys:
        return ''
    epochs = count_epochs(runs)
    main = [key for key in keys if is_main(key)] or keys[:1]
    others = [key for key in keys if key not in main]
    shown = _legend(runs, [run for run in runs if run.evaluations]) + charts(
        *(_metric(runs, key, epochs) for key in main)
    )
    return shown + (
        details('All other metrics', charts(*(_metric(runs, key, epochs) for key in others))) if others else ''
    )


def _metric(runs: Sequence[Run], key: str, epochs: bool) -> str:
    metric = describe(key)
    lines = [
        Line(run.name, [(x, y * metric.factor) for x, y in run.metric(key, epochs)], index)
        for index, run in enumerate(runs)
    ]
    if all(len(line.points) <= 1 for line in lines):
        bars = [(line.label, line.points[0][1], line.style) for line in lines if line.points]
        return bar_chart(f'{metric.label}, the only evaluation', bars, metric.unit)
    return line_chart(metric.label, lines, 'epoch' if epochs else 'iteration', metric.unit, dots=True)


def loss_section(runs: Sequence[Run]) -> str:
    """Returns the total loss, those of the task, and apart from them those of the distillation."""
    keys = _keys(runs)
    of_task = [key for key in keys if 'loss' in key and not key.startswith('distill.')]
    of_task.sort(key=lambda key: key != 'loss')
    if not of_task:
        return ''
    return _legend(runs, [run for run in runs if run.train]) + charts(
        *(_curve(runs, key, TITLES.get(key, key)) for key in of_task)
    )


def distillation_section(runs: Sequence[Run]) -> str:
    """Returns the weighted losses of the distillation entries, then their parts by level and band."""
    keys = _keys(runs)
    weighted = [key for key in keys if key.startswith('distill.loss_') or key.startswith('distill.scale')]
    having = [run for run in runs if any(key in run.train_keys() for key in weighted)]
    if not having:
        return ''
    weighted_charts = [_curve(runs, key, f'{remove_prefix(key, "distill.")}, weighted') for key in weighted]
    parts = [_legend(runs, having) + charts(*weighted_charts)]
    terms = [_terms(run) for run in having]
    if any(terms):
        parts.append(heading('By feature level and wavelet band'))
        parts.append(
            paragraph(
                'The share of each level in the loss, before its weight; level 0 has the highest resolution.', soft=True
            )
        )
        most = max(len(re.findall('<polyline', figure)) for figures in terms for figure in figures)
        parts.append(legend([f'level {level}' for level in range(most)]))
        parts += [charts(*figures) for figures in terms]
    return ''.join(parts)


def _terms(run: Run) -> list[str]:
    """Returns one chart an entry and band, with a line a level."""
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    figures = []
    for key in run.train_keys():
        match = TERM.match(key)
        if not match:
            continue
        level = LEVEL.match(match['term'])
        if level:
            groups.setdefault((match['entry'], level['band'] or ''), []).append((int(level['level']), key))
        else:
            line = Line(key, run.series(key))
            figures.append(line_chart(f'{_named(run, match["entry"])}: {match["term"]}', [line], 'iteration', 'value'))
    by_level = [
        line_chart(
            f'{_named(run, entry)}: {BANDS.get(band, band)}',
            [Line(f'level {level}', run.series(key), level) for level, key in sorted(found)],
            'iteration',
            'share in the loss',
        )
        for (entry, band), found in groups.items()
    ]
    return by_level + figures


def _named(run: Run, entry: str) -> str:
    return run.name if run.name.endswith(entry) else f'{run.name}, {entry}'


def _legend(runs: Sequence[Run], shown: Sequence[Run]) -> str:
    """Names the runs that a section shows, in the colours that they have everywhere."""
    return legend([run.name for run in shown], [runs.index(run) for run in shown])


def optimisation_section(runs: Sequence[Run]) -> str:
    """Returns the learning rate, the norm of the gradient, and what a prompt's training logs."""
    keys = _keys(runs)
    figures = []
    if 'lr' in keys:
        figures.append(_curve(runs, 'lr', 'learning rate'))
    if 'grad_norm' in keys:
        figures.append(_curve(runs, 'grad_norm', 'norm of the gradient, before clipping'))
    figures += [_curve(runs, key, f'prompt: {key[7:].replace("_", " ")}') for key in keys if key.startswith('prompt/')]
    return _legend(runs, [run for run in runs if run.train]) + charts(*figures) if any(figures) else ''


TITLES = {'loss': 'total loss, all terms with their weights'}


def _keys(runs: Sequence[Run]) -> list[str]:
    return list({key: None for run in runs for key in run.train_keys() if key not in OTHERS})


def _curve(runs: Sequence[Run], key: str, title: str) -> str:
    lines = [Line(run.name, run.series(key), index) for index, run in enumerate(runs)]
    return line_chart(title, lines, 'iteration', 'value' if 'loss' not in key else 'loss')
