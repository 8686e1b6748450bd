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
    seen: list[tuple[dict[str, list[Tensor]], Tensor | None]] = []
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
                    with isolated_rng(seed=0):  # heads that sample do so alike
                        losses[index] += float(task_loss(model(**data, mode='loss'), data['inputs'])) / len(batches)
                size = (data['inputs'].shape[-2], data['inputs'].shape[-1])
                edges = [object_edges(sample, size) for sample in data['data_samples']]
                known = [one for one in edges if one is not None]
                seen.append((bank.seen, torch.stack(known) if len(known) == len(edges) else None))
                images += len(edges)
    finally:
        bank.active, bank.seen = True, None
        nn.Module.train(bank, training)
    bands: dict[str, Any] = {}
    last: Masks = {}
    for place in seen[-1][0] if seen else ():
        # One entry per group: its masks and the edges of every batch that has it. Small images have fewer.
        count = max(len(masks[place]) for masks, _ in seen)
        groups = ([(m[place][i], edges) for m, edges in seen if len(m[place]) > i] for i in range(count))
        bands[place] = named_groups([selects(*zip_equal(*group)) for group in groups], bank.first[0].grouping)
        last[place] = named_groups([group[0] for group in seen[-1][0][place]], bank.first[0].grouping)
    return dict(images=images, task_loss=losses.tolist(), bands=bands), last


def selects(masks: Sequence[Tensor], edges: Sequence[Tensor | None]) -> dict[str, float | None]:
    """Returns how the weight of one group of bands, the mean of its masks over the tokens, differs over the positions.

    The masks are (N, T, h, w) of each batch, the edges of objects (N, 1, H, W) of 0 and 1, or None. ``edges`` is the
    mean weight at the positions that an edge crosses over the mean elsewhere; None where one of the two has no
    positions. ``spread`` is the deviation over the mean.
    """
    weight = torch.cat([mask.mean(1).flatten() for mask in masks])
    ratio = None
    known = [F.adaptive_max_pool2d(e, mask.shape[2:]) for e, mask in zip_equal(edges, masks) if e is not None]
    if len(known) == len(masks):
        crossed = torch.cat([one.flatten() for one in known]) > 0
        if crossed.any() and not crossed.all():
            ratio = float(weight[crossed].mean() / weight[~crossed].mean().clamp(min=1e-12))
    spread = float(weight.std(unbiased=False) / weight.mean().clamp(min=1e-12))
    return dict(edges=ratio, spread=spread)


def of_masks(masks: Masks) -> dict[str, Any]:
    """Returns the spread of the weight of one image's masks (T, h, w), as :func:`measure`."""
    bands = {place: {b: selects([m[None]], [None]) for b, m in groups.items()} for place, groups in masks.items()}
    return dict(images=1, task_loss=None, bands=bands)


def object_edges(sample: Any, size: tuple[int, int]) -> Tensor | None:
    """Returns the edges of a sample's objects, (1, H, W) of 0 and 1; None if they are unknown."""
    edges = torch.zeros(1, *size)
    if 'gt_instances' in sample and 'bboxes' in sample.gt_instances:
        boxes = sample.gt_instances.bboxes
        boxes = getattr(boxes, 'tensor', boxes).cpu().round().long().clamp(min=0)
        limits = torch.tensor([size[1] - 1, size[0] - 1] * 2)
        for left, top, right, bottom in boxes.minimum(limits).tolist():
            edges[0, top : bottom + 1, [left, right]] = 1
            edges[0, [top, bottom], left : right + 1] = 1
        return edges
    if 'gt_sem_seg' in sample:
        # Where the labels change.
        labels = sample.gt_sem_seg.data.cpu()[..., : size[0], : size[1]]
        height, width = labels.shape[-2:]
        edges[:, 1:height, :width] = (labels[:, 1:] != labels[:, :-1]).float()
        edges[:, :height, 1:width].logical_or_(labels[..., 1:] != labels[..., :-1])
        return edges
    return None


def describe(measured: dict[str, Any]) -> str:
    """Returns what :func:`measure` found, as a table with a line below it."""
    rows = [
        [place, name, *('-' if band[key] is None else f'{band[key]:.2f}' for key in ('edges', 'spread'))]
        for place, bands in measured['bands'].items()
        for name, band in bands.items()
    ]
    header = ['place', 'band', 'at edges / elsewhere', 'deviation / mean']
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
