"""mPC and rPC: the mean performance under corruption, and its share of the performance on clean pictures."""

from __future__ import annotations

import copy
import json
import math
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Dict

from mmengine.config import Config

from freekd_mm.checks import check_choice
from freekd_mm.files import write_text
from freekd_mm.robustness.corrupt import CORRUPTIONS, SEVERITIES
from freekd_mm.text import table

LOADERS = ('LoadImageFromFile', 'mmcv.LoadImageFromFile')
Results = Dict[str, Any]


def corrupted_config(cfg: Config, corruption: str, severity: int) -> Config:
    """Returns the config with the test pictures corrupted right after they are loaded."""
    cfg = copy.deepcopy(cfg)
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset.dataset
    pipeline = list(dataset.pipeline)
    places = [index for index, step in enumerate(pipeline) if step['type'] in LOADERS]
    if not places:
        raise ValueError(
            f"the test pipeline should have a 'LoadImageFromFile' to corrupt after, but has "
            f'{", ".join(str(step["type"]) for step in pipeline)}'
        )
    step = dict(type='freekd_mm.Corrupt', corruption=corruption, severity=severity)
    dataset.pipeline = [*pipeline[: places[0] + 1], step, *pipeline[places[0] + 1 :]]
    return cfg


def measure(
    cfg: Config,
    checkpoint: str,
    metric: str,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Evaluates clean and under every corruption and severity; continues an ``out`` file that exists already.

    Args:
        cfg: Config of a detector or segmenter, plain or distilled.
        checkpoint: Its checkpoint.
        metric: Key of the metric, e.g. ``'coco/bbox_mAP'`` or ``'mIoU'``.
        corruptions: Names of ``CORRUPTIONS``.
        severities: Of 1 to 5.
        out: JSON file, written after every evaluation.
        progress: Called with (done, total).
    """
    for name in corruptions:
        check_choice('corruption', name, CORRUPTIONS)
    results: Results = {'checkpoint': str(checkpoint), 'metric': metric, 'clean': None, 'corrupted': {}}
    if out is not None and Path(out).is_file():
        before = json.loads(Path(out).read_text(encoding='utf-8'))
        if (before.get('checkpoint'), before.get('metric')) != (str(checkpoint), metric):
            raise ValueError(f'{out} should hold results of {checkpoint} and {metric}, but is of another run')
        results = before
    todo = [('clean', 0), *((name, severity) for name in corruptions for severity in severities)]
    for done, (name, severity) in enumerate(todo):
        if name == 'clean':
            if results['clean'] is None:
                results['clean'] = _evaluate(cfg, checkpoint, metric)
        elif str(severity) not in results['corrupted'].setdefault(name, {}):
            value = _evaluate(corrupted_config(cfg, name, severity), checkpoint, metric)
            results['corrupted'][name][str(severity)] = value
        results.update(summary(results))
        if out is not None:
            write_text(out, json.dumps(results, indent=2) + '\n')
        if progress is not None:
            progress(done + 1, len(todo))
    return results


def summary(results: Results) -> Results:
    """Returns mPC, the mean over corruptions of the mean over severities, and rPC = mPC / clean."""
    means = [mean(by_severity.values()) for by_severity in results['corrupted'].values() if by_severity]
    mpc = mean(means) if means else math.nan
    return {'mPC': mpc, 'rPC': mpc / results['clean'] if results['clean'] else math.nan}


def _evaluate(cfg: Config, checkpoint: str, metric: str) -> float:
    from freekd_mm.engine.evaluation import evaluate

    cfg = copy.deepcopy(cfg)
    cfg.experiment_name = f'robustness-{uuid.uuid4().hex}'
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        metrics = evaluate(cfg, checkpoint)
    check_choice('metric', metric, metrics)
    return float(metrics[metric])


def compare(results: dict[str, Results], factor: float = 1.0) -> str:
    """Returns a table of several models: clean, each corruption, mPC and rPC."""
    names = list(results)
    rows = [['clean', *(f'{factor * results[name]["clean"]:.1f}' for name in names)]]
    for corruption in CORRUPTIONS:
        cells = [results[name]['corrupted'].get(corruption) for name in names]
        if any(cells):
            rows.append([corruption, *(f'{factor * mean(cell.values()):.1f}' if cell else '' for cell in cells)])
    rows.append(['mPC', *(f'{factor * results[name]["mPC"]:.1f}' for name in names)])
    rows.append(['rPC (%)', *(f'{100 * results[name]["rPC"]:.1f}' for name in names)])
    return table(rows, ['', *names])
