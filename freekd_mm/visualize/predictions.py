"""Draws what models predict, and the ground truth, on pictures of a data set."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.compat.versions import zip_equal
from freekd_mm.runtime.config import build_model, default_scope, find_model, without_pretrained
from freekd_mm.runtime.model import student_state_dict

#: Boxes with a lower score are not drawn.
SCORE = 0.3
#: Small pictures are enlarged to this, so that lines are thin.
SIDE = 400
#: Colours of classes where a data set has none of its own.
COLORS = ((220, 60, 60), (60, 120, 220), (60, 170, 90), (230, 160, 40), (150, 90, 200), (40, 180, 190), (200, 90, 150))


def some_samples(cfg: Config, count: int) -> tuple[list[Any], dict[str, Any]]:
    """Returns some items of a config's test data, evenly spread, and what it says about its classes."""
    with default_scope(cfg.get('default_scope')):
        dataset = DATASETS.build(copy.deepcopy(cfg.test_dataloader['dataset']))
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    return [dataset[int(index)] for index in chosen], dict(dataset.metainfo)


def predict(cfg: Config, checkpoint: str | Path, data: Sequence[Any]) -> list[Any]:
    """Returns the data samples with the predictions of a checkpoint, of a plain model or of a distilled student."""
    model_cfg, scope = find_model(cfg)
    with default_scope(scope), torch.no_grad():
        model = build_model(without_pretrained(model_cfg), scope).eval()
        model.load_state_dict(student_state_dict(load_checkpoint_file(checkpoint)['state_dict']))
        return [model.test_step(pseudo_collate([copy.deepcopy(item)]))[0] for item in data]  # type: ignore[operator]


def draw(sample: Any, meta: dict[str, Any], truth: bool = False) -> tuple[np.ndarray, str]:
    """Returns an RGB picture with the predictions or the ground truth, and how many objects it shows.

    Args:
        sample: A data sample of mmdet or mmseg, with ``img_path``.
        meta: What the data set says about its classes.
        truth: Draw the ground truth.
    """
    image = read_rgb(sample.metainfo['img_path'])
    prefix = 'gt' if truth else 'pred'
    if hasattr(sample, f'{prefix}_sem_seg'):
        labels = getattr(sample, f'{prefix}_sem_seg').data[0].cpu().numpy()
        return draw_labels(image, labels, palette(meta)), ''
    found = getattr(sample, f'{prefix}_instances').cpu()
    boxes = getattr(found.bboxes, 'tensor', found.bboxes).numpy()
    if truth:
        boxes = boxes / np.tile(sample.metainfo.get('scale_factor', (1.0, 1.0)), 2)
    else:
        kept = found.scores.numpy() >= SCORE
        found, boxes = found[kept], boxes[kept]
    return draw_boxes(image, boxes, found.labels.numpy(), palette(meta)), f'{len(boxes)} boxes'


def palette(meta: dict[str, Any]) -> list[tuple[int, ...]]:
    """Returns a colour a class, RGB."""
    count = len(meta.get('classes') or COLORS)
    own = meta.get('palette')
    if isinstance(own, (list, tuple)) and len(own) >= count:
        return [tuple(map(int, color)) for color in own]
    return [COLORS[index % len(COLORS)] for index in range(count)]


def read_rgb(file: str | Path) -> np.ndarray:
    """Returns an image file as RGB."""
    from PIL import Image

    return np.asarray(Image.open(file).convert('RGB'))


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, colors: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Returns the picture, enlarged where it is small, with boxes (N, 4) in the colours of their classes."""
    import cv2

    scale = max(1.0, SIDE / max(image.shape[:2]))
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    for box, label in zip_equal((boxes * scale).round().astype(int), labels):
        corners = ((int(box[0]), int(box[1])), (int(box[2]), int(box[3])))
        # A dark rim, so that every colour is seen on every ground.
        cv2.rectangle(canvas, *corners, (15, 15, 15), 5)
        cv2.rectangle(canvas, *corners, colors[label % len(colors)], 3)
    return canvas


def draw_labels(image: np.ndarray, labels: np.ndarray, colors: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Returns the picture with the classes (H, W) of its pixels over it; what has none stays as it is."""
    import cv2

    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    known = (labels < len(colors))[..., None]
    mixed = np.where(known, 0.35 * image + 0.65 * table[labels.clip(0, 255)], image).astype(np.uint8)
    scale = max(1.0, SIDE / max(image.shape[:2]))
    return cv2.resize(mixed, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
