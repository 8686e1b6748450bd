"""Pictures of the results: the gain of every method, and the metric over the training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from freekd_mm.benchmark.plan import STUDENT, TEACHER, Plan
from freekd_mm.benchmark.records import Record, by_kind
from freekd_mm.benchmark.table import summarize, titles


def write_plots(records: Sequence[Record], plan: Plan, folder: Path) -> list[Path]:
    """Writes ``<plan>_val.png``, ``<plan>_test.png`` and ``<plan>_training.png``; returns those written.

    They show the kind of machine that has the most lines: means over several would compare other seeds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = max(by_kind(records).values(), key=len)
    files = [_bars(records, plan, split, folder / f'{plan.name}_{split}.png') for split in ('val', 'test')]
    files.append(_curves(records, plan, folder / f'{plan.name}_training.png'))
    return [file for file in files if file is not None]


def _bars(records: Sequence[Record], plan: Plan, split: str, file: Path) -> Path | None:
    """Mean and spread of every method, each seed as a dot, student alone and teacher as lines."""
    from matplotlib.figure import Figure

    summaries = summarize(records, plan, split)
    title = titles(plan)
    names = [name for name in title if name in summaries and name != TEACHER]
    if not names:
        return None
    names.sort(key=lambda name: summaries[name].mean)
    figure = Figure((7, 0.8 + 0.32 * len(names)), layout='constrained')
    axes = figure.add_subplot()
    for row, name in enumerate(names):
        summary = summaries[name]
        spread = 0 if math.isnan(summary.spread) else summary.spread
        color = '#999999' if name == STUDENT else '#2a6fb0' if 'wavelet' in name else '#d98b2b'
        axes.errorbar(summary.mean, row, xerr=spread, fmt='o', color=color, capsize=3)
        axes.plot(list(summary.values.values()), [row] * len(summary.values), '|', color=color, alpha=0.6)
    for name, style in ((STUDENT, ':'), (TEACHER, '--')):
        if name in summaries:
            axes.axvline(summaries[name].mean, color='#555555', linestyle=style, linewidth=1, label=title[name])
    axes.set_yticks(range(len(names)), [f'{title[name]} ({len(summaries[name].values)})' for name in names])
    axes.set_xlabel(f'{split} {plan.unit or plan.metric}, mean and standard deviation (number of seeds)')
    axes.legend(loc='lower right', fontsize='small')
    return _save(figure, axes, plan, file)


def _curves(records: Sequence[Record], plan: Plan, file: Path) -> Path | None:
    """The metric on the val data during the training, mean over the seeds."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    points: dict[str, dict[float, list[float]]] = {}
    for record in records:
        for share, value in record.get('history') or ():
            own = points.setdefault(record['method'], {}).setdefault(round(100 * share, 1), [])
            own.append(value * plan.factor)
    names = [name for name in titles(plan) if name in points]
    if not names:
        return None
    figure = Figure((7, 4 + 0.1 * len(names)), layout='constrained')
    axes = figure.add_subplot()
    for number, name in enumerate(names):
        color = colormaps['tab20'](number % 20)
        style = {'color': '#222222', 'linestyle': '--'} if name == TEACHER else {'color': color}
        shares = sorted(points[name])
        means = [mean(points[name][share]) for share in shares]
        axes.plot(shares, means, marker='.', label=titles(plan)[name], **style)
    axes.set_xlabel('share of the training (%)')
    axes.set_ylabel(f'val {plan.unit or plan.metric}')
    # Below the plot: with many methods it would hide the curves.
    figure.legend(fontsize='x-small', ncols=2, loc='outside lower center')
    return _save(figure, axes, plan, file)


def _save(figure: Any, axes: Any, plan: Plan, file: Path) -> Path:
    axes.set_title(plan.title or plan.name)
    # Long names of rows leave less room than a title needs.
    figure.savefig(file, dpi=110, bbox_inches='tight')
    return file
