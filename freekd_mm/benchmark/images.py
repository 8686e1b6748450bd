"""What paired runs can show: an interval over the runs, one that also draws the test images, and a sign-flip test."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import numpy as np
from mmengine.hooks import Hook

from freekd_mm.registry import HOOKS

Interval = Tuple[float, float]
IMAGES_FILE = 'images.npz'
RECALLS = np.linspace(0, 1, 101)
Arrays = Dict[str, np.ndarray]
#: The metric, given how often each image counts, (images,).
Metric = Callable[[np.ndarray], float]
IMAGE_DRAWS = 400
#: Up to so many runs all signs are tried: 2 ** 14 of them; beyond, as many are drawn.
EXACT = 14


def interval(differences: Sequence[float]) -> Interval:
    """Returns the 95 % interval of the mean over two or more runs, by Student's t."""
    from scipy.stats import sem, t

    middle, half = float(np.mean(differences)), float(t.ppf(0.975, len(differences) - 1) * sem(differences))
    return middle - half, middle + half


def image_interval(pairs: Sequence[Metric], images: int) -> Interval:
    """Returns the bootstrap interval if runs and images are both drawn again; all pairs see the same images."""
    # Too narrow with few runs: their draws hardly leave their range. A pair of runs is the difference of their metrics.
    generator = np.random.default_rng(0)
    means = []
    for _ in range(IMAGE_DRAWS):
        weights = np.bincount(generator.integers(images, size=images), minlength=images)
        drawn = np.bincount(generator.integers(len(pairs), size=len(pairs)))
        means.append(sum(times * pair(weights) for times, pair in zip(drawn, pairs) if times) / len(pairs))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def p_value(differences: Sequence[float]) -> float:
    """Returns the two-sided p-value of a sign-flip test: the share of all signs whose mean is as far from zero."""
    # With n runs it is never below 2 / 2 ** n: 0.25 for three, 0.03 for six.
    values = np.asarray(differences, dtype=float)
    if len(values) <= EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(2**EXACT, len(values)))
    # Sums that differ only by rounding are equal.
    return float(np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-9))


@HOOKS.register_module()
class BenchmarkImagesHook(Hook):
    """Keeps what each image adds to COCO's box AP or to the mIoU in a ``.npz`` file; other metrics leave none."""

    def __init__(self, file: str) -> None:
        self.file = file

    def before_test(self, runner: Any) -> None:
        """Lets the metrics tell their results before they forget them."""
        for metric in runner.test_loop.evaluator.metrics:
            collect = {'CocoMetric': _detections, 'IoUMetric': _areas}.get(type(metric).__name__)
            if collect is not None:
                metric.compute_metrics = functools.partial(self._compute, metric, collect, metric.compute_metrics)

    def _compute(self, metric: Any, collect: Callable, compute: Callable, results: list) -> dict:
        values = compute(results)
        np.savez_compressed(self.file, **collect(metric, results))
        return values


def _areas(metric: Any, results: list) -> Arrays:
    """Returns the areas of intersection and union, (images, classes)."""
    intersect, union = ([np.asarray(result[index]) for result in results] for index in (0, 1))
    return {'intersect': np.stack(intersect), 'union': np.stack(union)}


def _detections(metric: Any, results: list) -> Arrays:
    """Returns COCO's matches: for each box whether it is right or wrong, per IoU threshold."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = metric._coco_api
    boxes = [
        {'image_id': found['img_id'], 'category_id': metric.cat_ids[label], 'score': float(score),
         'bbox': [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]}
        for _, found in results
        for box, score, label in zip(found['bboxes'], found['scores'], found['labels'])
    ]  # fmt: skip
    # COCO's own loader takes no empty list.
    evaluation = COCOeval(truth, truth.loadRes(boxes) if boxes else COCO(), 'bbox')
    evaluation.params.catIds, evaluation.params.imgIds = metric.cat_ids, metric.img_ids
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ['all']
    evaluation.evaluate()
    images = {name: index for index, name in enumerate(metric.img_ids)}
    categories = {name: index for index, name in enumerate(metric.cat_ids)}
    positives = np.zeros((len(images), len(categories)), dtype=np.int64)
    matches = []
    for found in filter(None, evaluation.evalImgs):
        image, category = images[found['image_id']], categories[found['category_id']]
        positives[image, category] = np.count_nonzero(np.asarray(found['gtIgnore']) == 0)
        matched, ignored = found['dtMatches'] > 0, found['dtIgnore'].astype(bool)
        places = np.full(matched.shape[1], image, np.int32), np.full(matched.shape[1], category, np.int16)
        scores = np.asarray(found['dtScores'], dtype=np.float64)
        matches.append((*places, scores, (matched & ~ignored).T, (~matched & ~ignored).T))
    names = ('image', 'category', 'score', 'right', 'wrong')
    return {'positives': positives, **dict(zip(names, map(np.concatenate, zip(*matches))))}


def metric_of(arrays: Arrays) -> Metric:
    """Returns the metric as a function of how often each image counts, (images,)."""
    if 'union' in arrays:
        return functools.partial(_miou, arrays['intersect'], arrays['union'])
    order = np.argsort(-arrays['score'], kind='mergesort')
    by_category = []
    for category in range(arrays['positives'].shape[1]):
        own = order[arrays['category'][order] == category]
        by_category.append((arrays['positives'][:, category], arrays['image'][own],
                            arrays['right'][own].T, arrays['wrong'][own].T))  # fmt: skip
    return functools.partial(_average_precision, by_category)


def _miou(intersect: np.ndarray, union: np.ndarray, weights: np.ndarray) -> float:
    total = weights @ union
    seen = total > 0
    return float(100 * np.mean((weights @ intersect)[seen] / total[seen]))


def _average_precision(by_category: list, weights: np.ndarray) -> float:
    """Returns COCO's AP: the mean over categories, IoU thresholds and 101 recalls."""
    values = []
    for positives, image, right, wrong in by_category:
        total = weights @ positives
        if total == 0:
            continue
        weight = weights[image]
        true, false = np.cumsum(right * weight, axis=1), np.cumsum(wrong * weight, axis=1)
        precision = true / np.maximum(true + false, 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for recalls, best in zip(true / total, precision):
            values.append(np.append(best, 0.0)[np.searchsorted(recalls, RECALLS)].mean())
    return float(np.mean(values)) if values else 0.0


def pair_interval(pairs: Sequence[Sequence[Path]], factor: float) -> Interval | None:
    """Returns the interval of ``factor`` times the difference of two runs each; None where a run left no file."""
    if not all(file.is_file() for pair in pairs for file in pair):
        return None
    arrays = [[dict(np.load(file)) for file in pair] for pair in pairs]

    def difference(one: Metric, other: Metric) -> Metric:
        return lambda weights: factor * (one(weights) - other(weights))

    first = arrays[0][0]
    images = len(first['union' if 'union' in first else 'positives'])
    return image_interval([difference(*map(metric_of, pair)) for pair in arrays], images)
