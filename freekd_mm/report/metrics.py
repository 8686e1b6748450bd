"""What the metrics of mmdet, mmseg and mmpretrain are called, and in which unit they are shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

COCO = re.compile(r'^(?:\w+/)?(?P<kind>bbox|segm|proposal|keypoints)_mAP(?:_(?P<part>50|75|s|m|l))?$')
KINDS = {'bbox': 'box', 'segm': 'mask', 'proposal': 'proposal', 'keypoints': 'keypoint'}
PARTS = {'50': '50', '75': '75', 's': ' small', 'm': ' medium', 'l': ' large', None: ''}
#: The metrics that a run is judged by, best known first; of others the first that was logged.
MAIN = ('coco/bbox_mAP', 'coco/segm_mAP', 'mIoU', 'accuracy/top1', 'pascal_voc/mAP')


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    key: str  # its name in the log
    label: str  # its name for people
    unit: str  # what the axis says
    factor: float = 1.0  # from the logged value to the unit

    def best(self, points: Sequence[tuple[int, float]]) -> tuple[int, float]:
        """Returns the point (step, value) with the best value: of an error the smallest."""
        is_error = any(word in self.key.lower() for word in ('loss', 'error', 'mae', 'mse'))
        return (min if is_error else max)(points, key=lambda point: point[1])

    def cell(self, value: float) -> str:
        """Returns a value for a table."""
        return f'{value * self.factor:.2f}' if self.factor == 100 or abs(value) >= 1 else f'{value:.4f}'


def describe(key: str) -> Metric:
    """Returns how to show a metric of this name."""
    match = COCO.match(key)
    if match:
        return Metric(key, f'{KINDS[match["kind"]]} AP{PARTS[match["part"]]}', 'AP, 0 to 100', 100)
    if key.rsplit('/', 1)[-1] in ('mIoU', 'aAcc', 'mAcc', 'mDice', 'mFscore', 'mPrecision', 'mRecall'):
        return Metric(key, key, f'{key.rsplit("/", 1)[-1]} (%)')
    return Metric(key, key, key)


def is_known(key: str, value: float) -> bool:
    """Whether a logged value is one: COCO's evaluation says -1 if there is nothing of a size."""
    return not (value == -1 and COCO.match(key))


def is_main(key: str) -> bool:
    """Whether a run may be judged by this metric."""
    match = COCO.match(key)
    return key in MAIN or (match is not None and match['part'] is None)


def main_metrics(keys: Iterable[str]) -> list[Metric]:
    """Returns the metrics that the runs are judged by."""
    keys = list(keys)
    found = [key for key in keys if is_main(key)]
    return [describe(key) for key in (found or keys[:1])]
