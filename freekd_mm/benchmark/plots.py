"""Pictures of the results: the gain of every method, and the metric over the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from freekd_mm.benchmark.plan import STUDENT, TEACHER, Plan
from freekd_mm.benchmark.records import Record, by_kind
from freekd_mm.benchmark.table import summarize, titles
from freekd_mm.pages.charts import Line, draw


def write_plots(records: Sequence[Record], plan: Plan, folder: Path) -> list[Path]:
    """Writes ``<plan>_val.png``, ``<plan>_test.png`` and ``<plan>_training.png``; returns those written.

    They show the kind of machine that has the most lines: means over several would compare other seeds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = max(by_kind(records).values(), key=len)
    figures = {split: _bars(records, plan, split) for split in ('val', 'test')}
    figures['training'] = _curves(records, plan)
    files = []
    for name, figure in figures.items():
        if figure is not None:
            figure.axes[0].set_title(plan.title or plan.name)
            files.append(folder / f'{plan.name}_{name}.png')
            # Long names of rows leave less room than a title needs.
            figure.savefig(files[-1], dpi=110, bbox_inches='tight')
    return files


def _bars(records: Sequence[Record], plan: Plan, split: str) -> Figure | None:
    """Mean and spread of every method, each seed as a dot, student alone and teacher as lines."""
    summaries, title = summarize(records, plan, split), titles(plan)
    names = [name for name in title if name in summaries and name != TEACHER]
    if not names:
        return None
    names.sort(key=lambda name: summaries[name].mean)
    figure = Figure((7, 0.8 + 0.32 * len(names)), layout='constrained')
    axes = figure.add_subplot()
    for row, name in enumerate(names):
        summary = summaries[name]
        color = '#999999' if name == STUDENT else '#2a6fb0' if 'wavelet' in name else '#d98b2b'
        axes.errorbar(summary.mean, row, xerr=summary.spread, fmt='o', color=color, capsize=3)
        axes.plot(list(summary.values.values()), [row] * len(summary.values), '|', color=color, alpha=0.6)
    for name, style in ((STUDENT, ':'), (TEACHER, '--')):
        if name in summaries:
            axes.axvline(summaries[name].mean, color='#555555', linestyle=style, linewidth=1, label=title[name])
    axes.set_yticks(range(len(names)), [f'{title[name]} ({len(summaries[name].values)})' for name in names])
    axes.set_xlabel(f'{split} {plan.unit or plan.metric}, mean and standard deviation (number of seeds)')
    axes.legend(loc='lower right', fontsize='small')
    return figure


def _curves(records: Sequence[Record], plan: Plan) -> Any:
    """The metric on the val data during the training, mean over the seeds."""
    points: dict[str, dict[float, list[float]]] = {name: {} for name in titles(plan)}
    for record in records:
        for share, value in record.get('history') or ():
            own = points.get(record['method'], {})
            own.setdefault(round(100 * share, 1), []).append(value * plan.factor)
    lines = [
        Line(titles(plan)[name], [(share, mean(values)) for share, values in sorted(own.items())], index)
        for index, (name, own) in enumerate(points.items())
        if own
    ]
    if not lines:
        return None
    figure = draw(lines, 'share of the training (%)', f'val {plan.unit or plan.metric}', dots=True, legend=True)
    figure.set_size_inches(7, 4 + 0.1 * len(lines))
    return figure
