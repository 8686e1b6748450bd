"""How selective a prompt is: where its masks weigh more than elsewhere, and what that costs the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Dict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freekd_mm.compat.versions import zip_equal
from freekd_mm.prompts.masks import LOW, named_groups
from freekd_mm.runtime.pull import task_loss
from freekd_mm.runtime.rng import isolated_rng
from freekd_mm.stage1.bank import PromptBank
from freekd_mm.text import table

#: A weight whose deviation is less than this share of its mean is flat.
FLAT = 0.1
Masks = Dict[str, Dict[str, Tensor]]


@torch.no_grad()
def measure(model: Any, bank: PromptBank, batches: Sequence[Any]) -> tuple[dict[str, Any], Masks]:
    """Measures a prompt on batches of the data loader; the model and the random numbers stay as they are.

    Returns:
        Numbers that a prompt file can hold: ``images``; ``task_loss`` without and with the prompt; and ``bands``, see
        :func:`selects`, by place and name of the band. And the masks (T, h, w) of the last batch's first image, by
        the same names.
    """
    seen: list[tuple[dict[str, list[Tensor]], Tensor | None, Tensor | None]] = []
    losses, images = torch.zeros(2), 0
    training = bank.training
    # The masks as the file has them; the teacher's heads need their own mode for a loss.
    nn.Module.train(bank, False)
    try:
        with isolated_rng(seed=0):
            for batch in batches:
                data = model.data_preprocessor(batch, True)
                bank.seen = {}
                for index, bank.active in enumerate((False, True)):
                    losses[index] += float(task_loss(model(**data, mode='loss'), losses)) / len(batches)
                size = (data['inputs'].shape[-2], data['inputs'].shape[-1])
                maps = [object_maps(sample, size) for sample in data['data_samples']]
                edges, inside = (None if any(m is None for m in kind) else torch.stack(kind) for kind in zip(*maps))
                seen.append((bank.seen, edges, inside))
                images += len(maps)
    finally:
        bank.active, bank.seen = True, None
        nn.Module.train(bank, training)
    bands: dict[str, Any] = {}
    last: Masks = {}
    for place in seen[-1][0] if seen else ():
        # One entry per group: its masks and the maps of every batch.
        groups = zip_equal(*([(group, *maps) for group in masks[place]] for masks, *maps in seen))
        bands[place] = named_groups([selects(*zip_equal(*group)) for group in groups], bank.first[0].grouping)
        last[place] = named_groups([group[0] for group in seen[-1][0][place]], bank.first[0].grouping)
    return dict(images=images, task_loss=losses.tolist(), bands=bands), last


def selects(
    masks: Sequence[Tensor], edges: Sequence[Tensor | None], inside: Sequence[Tensor | None]
) -> dict[str, float | None]:
    """Returns how the weight of one group of bands, the mean of its masks over the tokens, differs over the positions.

    The masks are (N, T, h, w) of each batch, the edges and the objects themselves (N, 1, H, W) of 0 and 1, or None.
    ``edges`` and ``inside`` are the mean weight at the positions that an edge of an object crosses, and at those mostly
    within objects, over the mean elsewhere; None where one of the two has no positions. ``spread`` is the deviation
    over the mean.
    """
    weight = torch.cat([mask.mean(1).flatten() for mask in masks])

    def ratio(maps: Sequence[Tensor | None], least: float) -> float | None:
        known = [F.adaptive_avg_pool2d(m, mask.shape[2:]) for m, mask in zip_equal(maps, masks) if m is not None]
        if len(known) < len(masks):
            return None
        there = torch.cat([share.flatten() for share in known]) > least
        if there.all() or not there.any():
            return None
        return float(weight[there].mean() / weight[~there].mean().clamp(min=1e-12))

    spread = float(weight.std(unbiased=False) / weight.mean().clamp(min=1e-12))
    return dict(edges=ratio(edges, 0), inside=ratio(inside, 0.5), spread=spread)


def of_masks(masks: Masks) -> dict[str, Any]:
    """Returns the spread of the weight of one image's masks (T, h, w), as :func:`measure`."""
    bands = {p: {b: selects([m[None]], [None], [None]) for b, m in groups.items()} for p, groups in masks.items()}
    return dict(images=1, task_loss=None, bands=bands)


def object_maps(sample: Any, size: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
    """Returns the edges of a sample's objects and the objects themselves, (1, H, W) of 0 and 1; None if unknown."""
    # A detector's are its boxes; a segmenter's edges are where the labels change.
    if 'gt_instances' in sample and 'bboxes' in sample.gt_instances:
        boxes = sample.gt_instances.bboxes
        return _box_maps(getattr(boxes, 'tensor', boxes).cpu(), size)
    if 'gt_sem_seg' in sample:
        labels = sample.gt_sem_seg.data.cpu()[..., : size[0], : size[1]]
        changes, (height, width) = torch.zeros(1, *size), labels.shape[-2:]
        changes[:, 1:height, :width] = (labels[:, 1:] != labels[:, :-1]).float()
        changes[:, :height, 1:width].logical_or_(labels[..., 1:] != labels[..., :-1])
        return changes, None
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
