"""mPC and rPC: the mean performance under corruption, and its share of the performance on clean pictures."""

from __future__ import annotations

import copy
import itertools
import json
import math
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Dict

from mmengine.config import Config

from freekd_mm.checkpoints.sources import fetch, short_hash
from freekd_mm.checks import check_choice
from freekd_mm.engine.evaluation import evaluate
from freekd_mm.files import write_text
from freekd_mm.log import say
from freekd_mm.robustness.corruptions import CORRUPTIONS, SEVERITIES
from freekd_mm.runtime.config import type_name
from freekd_mm.runtime.probe import find_pipelines
from freekd_mm.text import table

LOADER = 'LoadImageFromFile'
Results = Dict[str, Any]


def corrupted_config(cfg: Config, corruption: str, severity: int) -> Config:
    """Returns the config with the test pictures corrupted right after they are loaded."""
    cfg = copy.deepcopy(cfg)
    step = dict(type='freekd_mm.Corrupt', corruption=corruption, severity=severity)
    for pipeline in find_pipelines(cfg.test_dataloader) or [[]]:
        types = [type_name(step) for step in pipeline]
        if LOADER not in types:
            raise ValueError(f'the test pipeline should have a {LOADER!r} to corrupt after, but has {", ".join(types)}')
        pipeline.insert(types.index(LOADER) + 1, dict(step))
    return cfg


def measure(
    cfg: Config,
    checkpoint: str,
    metric: str,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    out: str | Path | None = None,
) -> Results:
    """Evaluates clean and under every corruption and severity, and writes ``out`` (JSON) after each evaluation.

    The metric is a key like ``'coco/bbox_mAP'`` or ``'mIoU'``. An ``out`` file that exists already is continued.
    """
    for name in corruptions:
        check_choice('corruption', name, CORRUPTIONS)
    identity = {'checkpoint': str(checkpoint), 'sha256': short_hash(fetch(checkpoint)), 'metric': metric}
    results: Results = {**identity, 'clean': None, 'corrupted': {}}
    if out is not None and Path(out).is_file():
        before = json.loads(Path(out).read_text(encoding='utf-8'))
        if any(before.get(key) != value for key, value in identity.items()):
            raise ValueError(f'{out} should hold results of {identity}, but is of another run: take another --out-dir')
        results = before
    for name, severity in (('clean', 0), *itertools.product(corruptions, severities)):
        is_clean = name == 'clean'
        found, key = (results, name) if is_clean else (results['corrupted'].setdefault(name, {}), str(severity))
        if found.get(key) is None:
            say(f'{checkpoint}: {name}, severity {severity}')
            found[key] = _evaluate(cfg if is_clean else corrupted_config(cfg, name, severity), checkpoint, metric)
        tables = [results['corrupted'].get(name, {}) for name in corruptions]
        values = [[found[key] for key in map(str, severities) if key in found] for found in tables]
        means = [mean(own) for own in values if own]
        results['mPC'] = mean(means) if means else math.nan
        results['rPC'] = results['mPC'] / results['clean'] if results['clean'] else math.nan
        if out is not None:
            write_text(out, json.dumps(results, indent=2) + '\n')
    return results


def _evaluate(cfg: Config, checkpoint: str, metric: str) -> float:
    cfg = copy.deepcopy(cfg)
    cfg.experiment_name = f'robustness-{uuid.uuid4().hex}'
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        metrics = evaluate(cfg, checkpoint)
    check_choice('metric', metric, metrics)
    return float(metrics[metric])


def compare(results: dict[str, Results], factor: float = 1.0) -> str:
    """Returns a table of several models: clean, each corruption, mPC and rPC."""

    def row(name: str, values: Sequence[float | None], factor: float = factor) -> list[str]:
        return [name, *('' if value is None else f'{factor * value:.1f}' for value in values)]

    models = list(results.values())
    rows = [row('clean', [model['clean'] for model in models])]
    for corruption in CORRUPTIONS:
        cells = [model['corrupted'].get(corruption) for model in models]
        if any(cells):
            rows.append(row(corruption, [mean(cell.values()) if cell else None for cell in cells]))
    rows += [row('mPC', [model['mPC'] for model in models]), row('rPC (%)', [model['rPC'] for model in models], 100)]
    return table(rows, ['', *results])
