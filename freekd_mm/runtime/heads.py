"""How the dense heads of a detector predict boxes, and where a student's features can enter them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class DenseHead:
    """One detector's head.

    Attributes:
        boxes: ``'distribution'``, ``'deltas'`` or ``'distances'``, see :class:`freekd_mm.losses.CrossKDLoss`.
        bins: Bins of the distribution of an edge, 0 without one.
        stds: What the deltas are multiplied with.
        tower: Convolutions in each of the towers ``cls_convs`` and ``reg_convs``, 0 without such towers.
    """

    boxes: str
    bins: int = 0
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    tower: int = 0


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
    towers = [getattr(head, name, None) for name in ('cls_convs', 'reg_convs')]
    depths = {len(tower) for tower in towers if isinstance(tower, nn.ModuleList)}
    known = len(depths) == 1 and all(hasattr(conv, 'conv') for tower in towers for conv in tower or ())
    return DenseHead(
        boxes,
        head.reg_max + 1 if boxes == 'distribution' else 0,
        tuple(getattr(coder, 'stds', (1.0, 1.0, 1.0, 1.0))),
        depths.pop() if known else 0,
    )
