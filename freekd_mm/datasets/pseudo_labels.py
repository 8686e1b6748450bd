"""Labels that a trained model writes for pictures without: its confident predictions."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from torch.utils.data import DataLoader

from freekd_mm.checks import check_positive
from freekd_mm.compat import install
from freekd_mm.compat.versions import zip_equal
from freekd_mm.datasets.unlabelled import IGNORED, ImageFolder
from freekd_mm.engine.preflight import classes_of, dataset_class
from freekd_mm.files import check_output, make_room, write_kept
from freekd_mm.runtime.config import build_model, default_scope, find_model, without_pretrained
from freekd_mm.runtime.probe import find_pipeline
from freekd_mm.runtime.teacher import load_weights
from freekd_mm.text import track


class PseudoLabels(NamedTuple):
    """What was written.

    Attributes:
        path: The COCO file, or the folder of label maps.
        root: The folder that the names in it are relative to.
        pictures: How many pictures were looked at.
        labelled: How many of them have labels.
        counts: Boxes, or pixels, by class.
        unit: Which of the two.
    """

    path: Path
    root: Path
    pictures: int
    labelled: int
    counts: dict[str, int]
    unit: str

    def __str__(self) -> str:
        total = max(sum(self.counts.values()), 1)
        shares = ', '.join(f'{name} {count / total:.1%}' for name, count in self.counts.items())
        boxes = ', '.join(f'{name} {count}' for name, count in self.counts.items())
        return (
            f'{self.path}: {self.labelled} of {self.pictures} pictures of {self.root} have labels; '
            f'{self.unit} by class: {boxes if self.unit == "boxes" else shares}'
        )


def write_pseudo_labels(
    cfg: Config,
    checkpoint: str,
    folder: str | os.PathLike,
    out: str | os.PathLike,
    score: float = 0.5,
    workers: int = 2,
    device: str | None = None,
    force: bool = False,
    root: str | os.PathLike | None = None,
) -> PseudoLabels:
    """Writes a detector's boxes (and masks) as one COCO file, a segmenter's label maps as PNG files.

    Args:
        cfg: The model's config; of a distillation config its student.
        checkpoint: Its weights.
        folder: Pictures, see :class:`freekd_mm.datasets.unlabelled.ImageFolder`.
        out: The file or folder to write.
        score: Boxes with a lower score are left out; pixels with a lower probability become 255, which no loss counts.
        workers: Processes that load pictures.
        device: Where the model runs; the training's device by default.
        force: Replace what a person made or edited, and keep it.
        root: The folder that names in the COCO file are relative to; by default the one that holds all pictures.
    """
    install()
    check_positive('score', score, zero=True)
    if score > 1:
        raise ValueError(f'score should be at most 1, but got {score}')
    out = Path(out)
    check_output(out, [checkpoint], force)
    model_cfg, scope = find_model(cfg)
    model: Any = build_model(without_pretrained(model_cfg), scope)
    load_weights(model, checkpoint)
    model = model.to(device or get_device()).eval()
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    with default_scope(scope):
        pictures = ImageFolder(folder, find_pipeline(dataset) or ())
    classes = model.dataset_meta.get('classes') or classes_of(dataset, dataset_class(dataset, scope))
    if not classes:
        raise ValueError(f'{checkpoint} or the test data of the config should name the classes, but neither does')
    if root is None:
        is_folder = isinstance(folder, (str, os.PathLike)) and Path(folder).is_dir()
        root = folder if is_folder else os.path.commonpath([file.parent.resolve() for file in pictures.files])
    root = Path(root).resolve()
    is_map = hasattr(model, 'decode_head')
    if is_map != (out.suffix != '.json'):
        what = 'a folder for label maps' if is_map else 'a file like pseudo.json'
        raise ValueError(f'-o should be {what} for {type(model).__name__}, but got {str(out)!r}')
    writer: Any = _Maps(out) if is_map else _Coco(classes)
    if is_map:
        make_room(out)
    seen = set()
    batches = DataLoader(pictures, collate_fn=pseudo_collate, num_workers=workers)
    for batch in track(batches, 'pseudo labels'):
        with torch.no_grad(), default_scope(scope):
            (sample,) = model.test_step(batch)
        if sample.img_path not in seen:  # in place of a broken file there is the next one
            seen.add(sample.img_path)
            writer.add(Path(os.path.relpath(Path(sample.img_path).resolve(), root)), sample.cpu(), score)
    if not is_map:
        write_kept(out, json.dumps(writer.content))
    counts = {str(classes[index]): writer.counts[index] for index in sorted(writer.counts)}
    return PseudoLabels(out, root, len(seen), writer.labelled, counts, writer.unit)


class _Coco:
    """Boxes as COCO has them."""

    unit = 'boxes'

    def __init__(self, classes: Sequence[str]) -> None:
        categories = [{'id': index, 'name': str(name)} for index, name in enumerate(classes, 1)]
        self.content: dict[str, list] = {'images': [], 'annotations': [], 'categories': categories}
        self.counts: Counter = Counter()
        self.labelled = 0

    def add(self, name: Path, sample: Any, score: float) -> None:
        """Adds the confident boxes of a picture."""
        height, width = sample.ori_shape[:2]
        images, annotations = self.content['images'], self.content['annotations']
        images.append({'id': len(images) + 1, 'file_name': name.as_posix(), 'height': height, 'width': width})
        found = sample.pred_instances
        found = found[found.scores >= score]
        self.labelled += len(found) > 0
        for index, (box, label, value) in enumerate(zip_equal(found.bboxes, found.labels, found.scores)):
            x1, y1, x2, y2 = box.tolist()
            annotation = {
                'id': len(annotations) + 1,
                'image_id': images[-1]['id'],
                'category_id': int(label) + 1,
                'bbox': [x1, y1, x2 - x1, y2 - y1],
                'area': (x2 - x1) * (y2 - y1),
                'iscrowd': 0,
                'score': float(value),
            }
            if 'masks' in found:
                annotation.update(_as_rle(found.masks[index]))
            annotations.append(annotation)
            self.counts[int(label)] += 1


def _as_rle(mask: Any) -> dict[str, Any]:
    from pycocotools import mask as coco

    code = coco.encode(np.asfortranarray(np.asarray(mask), dtype=np.uint8))
    return {'segmentation': {**code, 'counts': code['counts'].decode('ascii')}, 'area': float(coco.area(code))}


class _Maps:
    """One PNG file for each picture, its pixels are classes."""

    unit = 'pixels'

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: Counter = Counter()
        self.labelled = 0

    def add(self, name: Path, sample: Any, score: float) -> None:
        """Writes the map of a picture."""
        logits = sample.seg_logits.data
        likely = logits.softmax(0).amax(0) if len(logits) > 1 else (logits[0].sigmoid() - 0.5).abs() + 0.5
        labels = sample.pred_sem_seg.data[0].masked_fill(likely < score, IGNORED)
        kept = labels[labels != IGNORED]
        self.labelled += kept.numel() > 0
        self.counts.update(dict(zip_equal(*(part.tolist() for part in kept.unique(return_counts=True)))))
        path = self.folder / name.with_suffix('.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), labels.numpy().astype(np.uint8))
