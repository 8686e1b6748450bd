"""The two tasks of the demo: which configs, how long, and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A demo task.

    Attributes:
        teacher: Config of the teacher.
        student: Config of the student.
        metric: Key of the metric in an evaluation.
        unit: Its name for people.
        factor: Factor from the evaluation's value to the unit.
        on_real_data: The command that does the same on the real data set.
    """

    teacher: str
    student: str
    metric: str
    unit: str
    factor: float
    on_real_data: str


TASKS = {
    'det': Task(
        teacher='configs/demo/det_teacher.py',
        student='configs/demo/det_student.py',
        metric='coco/bbox_mAP',
        unit='AP',
        factor=100,
        on_real_data='python tools/train.py configs/wavelet/gfl_r50_r101.py',
    ),
    'seg': Task(
        teacher='configs/demo/seg_teacher.py',
        student='configs/demo/seg_student.py',
        metric='mIoU',
        unit='mIoU',
        factor=1,
        on_real_data='python tools/train.py configs/wavelet/pspnet_r18_r101.py',
    ),
}
