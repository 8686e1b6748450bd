"""How selective a prompt is: where its masks weigh more than elsewhere, and what that costs the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime.pull import task_loss
from freekd_mm.runtime.rng import isolated_rng
from freekd_mm.stage1.bank import PromptBank
from freekd_mm.text import table

#: A weight whose deviation is less than this share of its mean is flat.
FLAT = 0.1
LOW = 'low'


class Weight:
    """Sums over the positions of one group of bands, of the weight: the mean of the masks."""

    def __init__(self) -> None:
        #: Number of positions, sum of the weight, sum of its square.
        self.all = [0.0, 0.0, 0.0]
        #: Number and sum at the positions that an edge of an object crosses, and at those mostly within objects.
        self.edges, self.inside = [0.0, 0.0], [0.0, 0.0]

    def add(self, weight: Tensor, edges: Tensor | None = None, inside: Tensor | None = None) -> None:
        """Adds the weight (N, 1, h, w) of a batch; edges and objects are (N, 1, H, W) of 0 and 1, None if unknown."""
        self.all = [a + float(b) for a, b in zip_equal(self.all, (weight.numel(), weight.sum(), weight.square().sum()))]
        for sums, what, least in ((self.edges, edges, 0.0), (self.inside, inside, 0.5)):
            if what is not None:
                there = (F.adaptive_avg_pool2d(what, (weight.shape[2], weight.shape[3])) > least).to(weight)
                sums[0] += float(there.sum())
                sums[1] += float((weight * there).sum())

    @property
    def spread(self) -> float:
        """Deviation of the weight over its mean."""
        count, total, square = self.all
        mean = total / max(count, 1)
        return max(square / max(count, 1) - mean**2, 0) ** 0.5 / mean if mean else 0.0

    def ratio(self, sums: list[float]) -> float | None:
        """Returns the mean weight there over the mean elsewhere; None if one of the two has no positions."""
        elsewhere = self.all[0] - sums[0]
        if not sums[0] or not elsewhere:
            return None
        return (sums[1] / sums[0]) / max((self.all[1] - sums[1]) / elsewhere, 1e-12)


@torch.no_grad()
def measure(model: Any, bank: PromptBank, batches: Sequence[Any]) -> tuple[dict[str, Any], dict[str, list[Tensor]]]:
    """Measures a prompt on batches of the data loader; the model and the random numbers stay as they are.

    Returns:
        Numbers that a prompt file can hold: ``images``; ``task_loss`` without and with the prompt; and ``bands``: by
        place and name of the band ``edges`` and ``inside`` (the weight there over elsewhere) and ``spread``. And the
        masks of the last batch's first image, by place, one (T, h, w) per group.
    """
    weights: dict[str, list[Weight]] = {}
    losses = torch.zeros(2)
    images = 0
    last: dict[str, list[Tensor]] = {}
    training = bank.training
    # The masks as the file has them; the teacher's heads need their own mode for a loss.
    nn.Module.train(bank, False)
    try:
        with isolated_rng(seed=0):
            for batch in batches:
                data = model.data_preprocessor(batch, True)
                size = (data['inputs'].shape[-2], data['inputs'].shape[-1])
                seen: dict[str, list[Tensor]] = {}
                bank.seen = seen
                for index, bank.active in enumerate((False, True)):
                    losses[index] += float(task_loss(model(**data, mode='loss'), losses)) / len(batches)
                maps = [object_maps(sample, size) for sample in data['data_samples']]
                edges, inside = (None if any(m is None for m in kind) else torch.stack(kind) for kind in zip(*maps))
                last = {place: [group[0] for group in groups] for place, groups in seen.items()}
                for place, groups in seen.items():
                    of_place = weights.setdefault(place, [Weight() for _ in groups])
                    for weight, masks in zip_equal(of_place, groups):
                        weight.add(masks.mean(1, keepdim=True), edges, inside)
                images += len(maps)
    finally:
        bank.active, bank.seen = True, None
        nn.Module.train(bank, training)
    bands = {place: _numbers(of_place, bank.first[0].grouping) for place, of_place in weights.items()}
    return dict(images=images, task_loss=losses.tolist(), bands=bands), last


def object_maps(sample: Any, size: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
    """Returns the edges of a sample's objects and the objects themselves, (1, H, W) of 0 and 1; None if unknown.

    A detector's are its boxes; a segmenter's edges are where the labels change.
    """
    if 'gt_instances' in sample and 'bboxes' in sample.gt_instances:
        boxes = sample.gt_instances.bboxes
        return _box_maps(getattr(boxes, 'tensor', boxes).cpu(), size)
    if 'gt_sem_seg' in sample:
        return _label_edges(sample.gt_sem_seg.data.cpu(), size), None
    return None, None


def _box_maps(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    edges, inside = torch.zeros(1, *size), torch.zeros(1, *size)
    limits = torch.tensor([size[1] - 1, size[0] - 1] * 2)
    for left, top, right, bottom in boxes.round().long().clamp(min=0).minimum(limits).tolist():
        rows, columns = slice(top, bottom + 1), slice(left, right + 1)
        inside[0, rows, columns] = 1
        edges[0, rows, [left, right]] = 1
        edges[0, [top, bottom], columns] = 1
    return edges, inside


def _label_edges(labels: Tensor, size: tuple[int, int]) -> Tensor:
    changes = torch.zeros(1, *size)
    height, width = min(size[0], labels.shape[-2]), min(size[1], labels.shape[-1])
    labels = labels[..., :height, :width]
    changes[:, 1:height, :width] = (labels[:, 1:] != labels[:, :-1]).float()
    changes[:, :height, 1:width] = changes[:, :height, 1:width].maximum((labels[..., 1:] != labels[..., :-1]).float())
    return changes


def of_masks(masks: dict[str, list[Tensor]], grouping: str) -> dict[str, Any]:
    """Returns the spread of the weight of one image's masks, by place (T, h, w) per group, as :func:`measure`."""
    bands: dict[str, Any] = {}
    for place, groups in masks.items():
        weights = [Weight() for _ in groups]
        for weight, group in zip_equal(weights, groups):
            weight.add(group[None].mean(1, keepdim=True))
        bands[place] = _numbers(weights, grouping)
    return dict(images=1, task_loss=None, bands=bands)


def _numbers(weights: list[Weight], grouping: str) -> dict[str, Any]:
    return {
        name: dict(edges=w.ratio(w.edges), inside=w.ratio(w.inside), spread=w.spread)
        for name, w in zip_equal(band_names(len(weights), grouping), weights)
    }


def describe(measured: dict[str, Any]) -> str:
    """Returns what :func:`measure` found, as a table with a line below it."""
    rows = [
        [place, name, *('-' if band[key] is None else f'{band[key]:.2f}' for key in ('edges', 'inside', 'spread'))]
        for place, bands in measured['bands'].items()
        for name, band in bands.items()
    ]
    header = ['place', 'band', 'at edges / elsewhere', 'in boxes / elsewhere', 'deviation / mean']
    if measured['task_loss'] is None:
        return table(rows, header)
    before, after = measured['task_loss']
    change = f' ({after / before - 1:+.1%})' if before else ''
    return (
        f'{table(rows, header)}\n'
        f'task loss on these {measured["images"]} images: {before:.4f} without the prompt, {after:.4f} with it{change}'
    )


def flat_bands(measured: dict[str, Any]) -> list[str]:
    """Returns which high bands have a flat weight."""
    return [
        f'{place} {name}'
        for place, bands in measured['bands'].items()
        for name, band in bands.items()
        if name != LOW and band['spread'] < FLAT
    ]


def band_names(count: int, grouping: str) -> list[str]:
    """Returns the names of the groups of bands, the low band's first."""
    if grouping == 'level':
        return [LOW, *(f'level {level}' for level in range(1, count))][:count]
    kinds = ('horizontal', 'vertical', 'diagonal')
    return [LOW, *(f'{kinds[index % 3]} {1 + index // 3}' for index in range(count - 1))][:count]
