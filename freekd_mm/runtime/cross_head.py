"""CrossKD's crossing (arXiv 2306.11369): the student's features in its head continue through the teacher's."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freekd_mm.checks import check_options, check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime.taps import Tap
from freekd_mm.runtime.teacher import FrozenTeacher
from freekd_mm.runtime.wiring import projection
from freekd_mm.tensors import full_precision

TOWERS = ('cls_convs', 'reg_convs')
EPS = 1e-6


@dataclass(frozen=True)
class DenseHead:
    """One detector's head."""

    boxes: str  # 'distribution', 'deltas' or 'distances', see freekd_mm.losses.CrossKDLoss
    bins: int = 0  # of the distribution of an edge, 0 without one
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)  # what the deltas are multiplied with
    tower: int = 0  # convolutions in each of the towers cls_convs and reg_convs, 0 without such towers


def find_head(model: nn.Module) -> DenseHead | str:
    """Returns a detector's head, or why it has none that fits."""
    head: Any = getattr(model, 'bbox_head', None)
    if head is None:
        return f'{type(model).__name__} has no dense head (bbox_head)'
    if not getattr(head, 'use_sigmoid_cls', False):
        return f'the scores of {type(head).__name__} do not go through a sigmoid'
    coder = getattr(head, 'bbox_coder', None)
    kind = type(coder).__name__
    if isinstance(getattr(head, 'reg_max', None), int):
        boxes = 'distribution'
    elif kind in ('DeltaXYWHBBoxCoder', 'DistancePointBBoxCoder'):
        boxes = 'deltas' if kind == 'DeltaXYWHBBoxCoder' else 'distances'
    else:
        return f'{type(head).__name__} predicts its boxes as {kind}, which is not supported'
    towers = [getattr(head, name, None) for name in TOWERS]
    depths = {len(tower) for tower in towers if isinstance(tower, nn.ModuleList)}
    known = len(depths) == 1 and all(hasattr(conv, 'conv') for tower in towers for conv in tower or ())
    return DenseHead(
        boxes,
        head.reg_max + 1 if boxes == 'distribution' else 0,
        tuple(getattr(coder, 'stds', (1.0, 1.0, 1.0, 1.0))),
        depths.pop() if known else 0,
    )


def crossing_taps(through: dict | None, what: str) -> tuple[Tap, ...]:
    """Returns the teacher's taps where the student's features take over, one per tower; none without ``through``."""
    if through is None:
        return ()
    check_options(what, through, ('start',))
    check_positive(f'start of {what}', through.get('start'), integer=True)
    return tuple(Tap(f'bbox_head.{tower}.{through["start"] - 1}') for tower in TOWERS)


class CrossHead(nn.Module):
    """Returns the predictions of the teacher's frozen ``bbox_head`` for the student's features.

    The features replace the output of layer ``start - 1`` of the head's two towers; all after it is the teacher's own
    code with its own weights. They get no gradient, the student does. If the widths differ, a 1x1 convolution per tower
    projects the student's features. Each channel gets the mean and deviation over the batch that the teacher's has
    there, and a ReLU.

    Args:
        teacher: The teacher. It is not a child: neither parameters nor checkpoints see it.
        taps: The teacher's, of :func:`crossing_taps`.
        students: The student's features for a dummy image: of all levels in the tower of the classes, then of the
            boxes.
        start: The first layer of the teacher's towers that they go through, 1 or more.
    """

    def __init__(self, teacher: FrozenTeacher, taps: Sequence[Tap], students: Sequence[Tensor], start: int) -> None:
        super().__init__()
        self.teacher, self.start, self.taps = teacher, start, taps
        given = teacher.levels(taps)
        if len(given) != len(students) or len(given) % 2:
            raise ValueError(
                f"through: the student's features should be of two towers with {len(given) // 2} levels each, as in "
                f"the teacher's head, but got {len(students)} levels in all"
            )
        middle = len(given) // 2
        self.projections = nn.ModuleList(projection(students[i].shape[1], given[i].shape[1]) for i in (0, middle))

    def __str__(self) -> str:
        return f"through the teacher's bbox_head from layer {self.start}"

    def forward(self, students: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the scores of all levels, then the boxes of all levels, for features as in ``students``."""
        features, middle = [], len(students) // 2
        for index, (own, other) in enumerate(zip_equal(students, self.teacher.levels(self.taps))):
            # The models may have run on the training's device, and the student's features are on the CPU.
            own = self.projections[int(index >= middle)](own).to(other.device)
            features.append(_like(own, other))
        with self.teacher.autocast(features[0].device):
            scores, boxes, *_ = self._behind(features[:middle], features[middle:]).forward(tuple(features[:middle]))
        return (*scores, *boxes)

    def _behind(self, *towers: Sequence[Tensor]) -> Any:
        """Returns a view of the teacher's head whose towers begin with what the student gives."""
        head: Any = copy.copy(self.teacher.model.bbox_head)
        head._modules = dict(head._modules)  # the teacher's own towers stay
        for name, features in zip_equal(TOWERS, towers):
            setattr(head, name, nn.ModuleList([_Given(features), *getattr(head, name)[self.start :]]))
        return head


class _Given(nn.Module):
    """Returns one feature map per call, for any input."""

    def __init__(self, features: Sequence[Tensor]) -> None:
        super().__init__()
        self.features: Iterator[Tensor] = iter(features)

    def forward(self, _: Tensor) -> Tensor:
        return next(self.features)


def _like(own: Tensor, other: Tensor) -> Tensor:
    """Returns (N, C, H, W) with the mean and deviation of ``other``, channel by channel, after a ReLU."""
    with torch.autocast(own.device.type, enabled=False):
        own, other = full_precision(own), full_precision(other)
        (mean_s, var_s), (mean_t, var_t) = (
            (x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)) for x in (own, other)
        )
        return F.relu((own - mean_s) * ((var_t + EPS) / (var_s + EPS)).sqrt() + mean_t)
