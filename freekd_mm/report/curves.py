"""The curves of runs: metrics, losses, and what distillation logs per level and band."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Callable

from markupsafe import Markup

from freekd_mm.compat.versions import remove_prefix
from freekd_mm.pages.page import Line, line_chart, parts
from freekd_mm.report.metrics import describe, is_main
from freekd_mm.report.runs import Run

#: ``distill.<entry>.<term>``, as the distillation logs the parts of a loss; a term may be ``level<i>/<band>``.
TERM = re.compile(r'^distill\.(?P<entry>\w+)\.(?:level(?P<level>\d+)(?:/(?P<band>.+))?|(?P<term>.+))$')
BANDS = {'low': 'low band', 'high': 'high bands', 'all': 'all bands', None: 'all bands'}
TITLES = {
    'loss': 'total loss, all terms with their weights',
    'lr': 'learning rate',
    'grad_norm': 'norm of the gradient, before clipping',
}


def metric_curves(runs: Sequence[Run]) -> list[Markup]:
    """Returns the metrics, those that count first, over epochs if all runs count them."""
    keys = list({key: None for run in runs for key in run.metric_keys()})
    if not keys:
        return []
    epochs = all(run.by_epoch for run in runs if run.evaluations)

    def chart(key: str) -> Markup:
        metric, x_label = describe(key), 'epoch' if epochs else 'iteration'
        lines = [
            Line(run.name, [(x, y * metric.factor) for x, y in run.metric(key, epochs)], index)
            for index, run in enumerate(runs)
        ]
        return line_chart(metric.label, lines, x_label, metric.unit, dots=True)

    main = [key for key in keys if is_main(key)] or keys[:1]
    others = [chart(key) for key in keys if key not in main]
    shown = parts.charts(list(map(chart, main)))
    return [shown, parts.details('All other metrics', [parts.charts(others)])] if others else [shown]


def distillation_curves(runs: Sequence[Run]) -> list[Markup]:
    """Returns the weighted losses of the distillation entries, then their parts by level and band."""
    found = curves(runs, lambda key: key.startswith(('distill.loss_', 'distill.scale')))
    terms = [parts.charts(_terms(run)) for run in runs if any(map(TERM.match, run.train_keys()))]
    if found and terms:
        explained = 'The share of each level in the loss, before its weight; level 0 has the highest resolution.'
        found += [parts.heading('By feature level'), parts.remark(explained), *terms]
    return found


def _terms(run: Run) -> list[Markup]:
    """Returns one chart per entry and band, with a line per level."""
    charts: dict[str, list[Line]] = {}
    for name in run.train_keys():
        match = TERM.match(name)
        if match:
            entry = run.name if run.name.endswith(match['entry']) else f'{run.name}, {match["entry"]}'
            term = match['term'] or BANDS.get(match['band'], match['band'])
            level = int(match['level'] or 0)
            charts.setdefault(f'{entry}: {term}', []).append(Line(f'level {level}', run.series(name), level))
    return [line_chart(title, lines, 'iteration', 'share in the loss') for title, lines in charts.items()]


def curves(runs: Sequence[Run], is_shown: Callable[[str], bool]) -> list[Markup]:
    """Returns a chart per logged value whose name is shown, with a line per run."""
    charts = []
    for name in filter(is_shown, {key: None for run in runs for key in run.train_keys()}):
        title = TITLES.get(name) or remove_prefix(name, 'distill.') + (', weighted' if 'distill.' in name else '')
        lines = [Line(run.name, run.series(name), index) for index, run in enumerate(runs)]
        charts.append(line_chart(title, lines, 'iteration', 'loss' if 'loss' in name else 'value'))
    return [parts.charts(charts)] if any(charts) else []
