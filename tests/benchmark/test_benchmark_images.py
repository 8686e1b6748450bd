"""What each image adds to a metric, against the metrics of mmdet and mmseg."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from freekd_mm.benchmark import records
from freekd_mm.benchmark.images import IMAGES_FILE, BenchmarkImagesHook, metric_of
from freekd_mm.benchmark.plan import Method, Plan
from freekd_mm.benchmark.table import comparisons

IMAGES = 12


def compute(metric, results, file):
    """Runs a metric with the hook on it; returns its values and the function that the file gives."""
    evaluator = SimpleNamespace(metrics=[metric])
    BenchmarkImagesHook(str(file)).before_test(SimpleNamespace(test_loop=SimpleNamespace(evaluator=evaluator)))
    values = metric.compute_metrics(results)
    return values, metric_of(dict(np.load(file)))


@pytest.fixture
def detections(tmp_path):
    """COCO's metric on boxes near and off the truth, some of it crowd, and its results."""
    metrics = pytest.importorskip('mmdet.evaluation')
    random = np.random.default_rng(0)
    boxes = [(image, kind, *random.integers(0, 60, 2), *random.integers(8, 40, 2))
             for image in range(IMAGES) for kind in range(2) for _ in range(random.integers(0, 4))]  # fmt: skip
    annotations = [
        {'id': index + 1, 'image_id': int(image) + 1, 'category_id': kind + 1, 'bbox': [*map(int, box)],
         'area': int(box[2] * box[3]), 'iscrowd': int(index % 7 == 0)}
        for index, (image, kind, *box) in enumerate(boxes)
    ]  # fmt: skip
    truth = {
        'images': [{'id': index + 1, 'width': 128, 'height': 128, 'file_name': ''} for index in range(IMAGES)],
        'categories': [{'id': 1, 'name': 'a'}, {'id': 2, 'name': 'b'}],
        'annotations': annotations,
    }
    file = tmp_path / 'truth.json'
    file.write_text(json.dumps(truth))
    metric = metrics.CocoMetric(ann_file=str(file), metric='bbox')
    metric.dataset_meta = {'classes': ('a', 'b')}
    metric.cat_ids, metric.img_ids = [1, 2], list(range(1, IMAGES + 1))
    results = []
    for image in range(IMAGES):
        own = [box for box in boxes if box[0] == image for _ in range(2)]
        found = np.array([[x, y, x + w, y + h] for _, _, x, y, w, h in own], dtype=float).reshape(-1, 4)
        found += random.normal(0, 3, found.shape)
        labels = np.array([kind for _, kind, *_ in own], dtype=int)
        scores = random.uniform(0, 1, len(own))
        results.append(({}, {'img_id': image + 1, 'bboxes': found, 'scores': scores, 'labels': labels}))
    return metric, results


def test_box_ap_is_cocos(detections, tmp_path):
    metric, results = detections
    values, average_precision = compute(metric, results, tmp_path / IMAGES_FILE)
    ones = np.ones(IMAGES, dtype=int)
    assert 0.2 < values['bbox_mAP'] < 0.9
    # COCO's is rounded to three digits.
    assert average_precision(ones) == pytest.approx(values['bbox_mAP'], abs=6e-4)
    assert average_precision(3 * ones) == pytest.approx(average_precision(ones))
    assert average_precision(np.arange(IMAGES)) != pytest.approx(average_precision(ones), abs=1e-3)


def test_a_detector_that_finds_nothing_has_an_ap_of_zero(detections, tmp_path):
    metric, results = detections
    nothing = [(gt, {**own, **{key: own[key][:0] for key in ('bboxes', 'scores', 'labels')}}) for gt, own in results]
    values, average_precision = compute(metric, nothing, tmp_path / IMAGES_FILE)
    assert values == {}, 'the worker puts zero there'
    assert average_precision(np.ones(IMAGES, dtype=int)) == 0


def test_miou_is_mmsegs(tmp_path):
    metrics = pytest.importorskip('mmseg.evaluation')
    random = np.random.default_rng(0)
    label = random.integers(0, 3, (IMAGES, 16, 16))
    guess = np.where(random.uniform(size=label.shape) < 0.6, label, random.integers(0, 4, label.shape))
    # The fourth class is nowhere: mmseg leaves it out of the mean.
    guess[guess == 3] = 0
    results = [
        metrics.IoUMetric.intersect_and_union(torch.tensor(g), torch.tensor(t), 4, 255) for g, t in zip(guess, label)
    ]
    metric = metrics.IoUMetric()
    metric.dataset_meta = {'classes': tuple('abcd')}
    values, miou = compute(metric, results, tmp_path / IMAGES_FILE)
    assert miou(np.ones(IMAGES, dtype=int)) == pytest.approx(values['mIoU'], abs=6e-3)


def test_comparisons_draw_the_images_of_runs_that_left_them(detections, tmp_path):
    metric, results = detections
    plan = Plan('toy', 's.py', 't.py', 'coco/bbox_mAP', (0, 1), {'pkd': Method('pkd', 'pkd', title='PKD')}, task='toy',
                compare=(('pkd', 'student'),), factor=100)  # fmt: skip
    lines = []
    for method, value in (('student', 0.4), ('pkd', 0.5)):
        values = {'val': {'coco/bbox_mAP': value}, 'test': {'coco/bbox_mAP': value, 'aAcc': value}}
        lines += [{'method': method, 'seed': seed, 'hash': 'h', **values} for seed in (0, 1)]
    assert comparisons(lines, plan, tmp_path)[0][4] == ''
    for line in lines:
        folder = tmp_path / 'runs' / 'toy' / f'{line["method"]}-seed{line["seed"]}-h'
        folder.mkdir(parents=True)
        # The student finds half of the boxes.
        found = [(gt, {**own, **{key: own[key][::2] for key in ('bboxes', 'scores', 'labels')}}) for gt, own in results]
        compute_metrics = metric.compute_metrics
        compute(metric, found if line['method'] == 'student' else results, folder / IMAGES_FILE)
        metric.compute_metrics = compute_metrics
    low, high = map(float, comparisons(records.newest(lines), plan, tmp_path)[0][4].split(' to '))
    assert low < high
    other = comparisons(records.newest(lines), replace(plan, metric='aAcc'), tmp_path)[0]
    assert other[1:3] == ['2', '+10.0']
    assert other[4] == '', 'what each image adds to another metric is not known'
