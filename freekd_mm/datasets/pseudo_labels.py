"""Labels that a trained model writes for pictures without: its confident predictions."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, cast

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
from freekd_mm.files import check_output, make_room, write_bytes, write_kept
from freekd_mm.registry import DATASETS
from freekd_mm.runtime.config import build_empty, default_scope
from freekd_mm.runtime.probe import find_pipeline
from freekd_mm.runtime.teacher import load_weights
from freekd_mm.text import track


class PseudoLabels(NamedTuple):
    """What was written."""

    path: Path  # the COCO file, or the folder of label maps
    root: Path  # the folder that the names in it are relative to
    pictures: int  # how many were looked at
    labelled: int  # how many of them have labels
    counts: dict[str, int]  # boxes, or pixels, by class
    unit: str  # which of the two

    def __str__(self) -> str:
        counts = ', '.join(f'{name} {count}' for name, count in self.counts.items())
        labelled = f'{self.labelled} of {self.pictures} pictures of {self.root} have labels'
        return f'{self.path}: {labelled}; {self.unit} by class: {counts}'


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

    The options are those of ``tools/pseudo_label.py``; ``folder`` is as for ``freekd_mm.ImageFolder``. Names in the
    COCO file are relative to ``root``, by default the folder that holds all pictures.
    """
    install()
    check_positive('score', score, zero=True)
    if score > 1:
        raise ValueError(f'score should be at most 1, but got {score}')
    out = Path(out)
    given = [folder] if isinstance(folder, (str, os.PathLike)) else list(folder)
    check_output(out, [checkpoint, *given], force, folder=out.suffix != '.json')
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        here = ', '.join(['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))])
        raise ValueError(f'device should be one that is here, as {here}, but got {device!r}') from error
    scope, model = cfg.get('default_scope'), cast(Any, build_empty(cfg))
    load_weights(model, checkpoint)
    model = model.to(device or get_device()).eval()
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    with default_scope(scope):
        pictures = ImageFolder(folder, find_pipeline(dataset) or ())
        meta = model.dataset_meta
        if not meta.get('classes') and dataset:
            meta = DATASETS.build({**dataset, 'lazy_init': True}).metainfo
        classes = meta.get('classes')
    if not classes:
        raise ValueError(f'{checkpoint} or the test data of the config should name the classes, but neither does')
    if root is None:
        is_folder = len(given) == 1 and Path(given[0]).is_dir()
        root = given[0] if is_folder else os.path.commonpath([file.parent.absolute() for file in pictures.files])
    root = Path(os.path.abspath(root))
    is_map = hasattr(model, 'decode_head')
    if is_map != (out.suffix != '.json'):
        what = 'a folder for label maps' if is_map else 'a file like pseudo.json'
        raise ValueError(f'-o should be {what} for {type(model).__name__}, but got {str(out)!r}')
    categories = [{'id': index, 'name': str(name)} for index, name in enumerate(classes, 1)]
    coco: dict[str, list] = {'images': [], 'annotations': [], 'categories': categories}
    counts: Counter = Counter()
    labelled = 0
    if is_map:
        make_room(out)
    seen, written = set(), set()
    batches = DataLoader(pictures, collate_fn=pseudo_collate, num_workers=workers)
    for batch in track(batches, 'pseudo labels'):
        with torch.no_grad(), default_scope(scope):
            (sample,) = model.test_step(batch)
        if sample.img_path not in seen:  # in place of a broken file there is the next one
            seen.add(sample.img_path)
            name = Path(os.path.relpath(sample.img_path, root))  # links are not followed
            if is_map and name.parts[0] == os.pardir:
                raise ValueError(f'root should be above all pictures, but {sample.img_path} is not below {root}')
            if is_map:
                file = (out / name).with_suffix('.png')
                if file in written:
                    raise ValueError(f'each picture should have a label map of its own, but {file} is of two')
                written.add(file)
                found = _write_map(file, sample.cpu(), score, bool(meta.get('reduce_zero_label')))
            else:
                found = _add(coco, name, sample.cpu(), score)
            labelled += bool(found)
            counts.update(found)
    if not is_map:
        write_kept(out, json.dumps(coco))
    named = {str(classes[index]): counts[index] for index in sorted(counts)}
    return PseudoLabels(out, root, len(seen), labelled, named, 'pixels' if is_map else 'boxes')


def _add(coco: dict[str, list], name: Path, sample: Any, score: float) -> dict[int, int]:
    """Adds the confident boxes of a picture as COCO has them; returns how many there are by class."""
    from pycocotools import mask as coco_mask

    height, width = sample.ori_shape[:2]
    images, annotations = coco['images'], coco['annotations']
    images.append({'id': len(images) + 1, 'file_name': name.as_posix(), 'height': height, 'width': width})
    found = sample.pred_instances
    found = found[found.scores >= score]
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
            code = coco_mask.encode(np.asfortranarray(np.asarray(found.masks[index]), dtype=np.uint8))
            annotation['segmentation'] = {**code, 'counts': code['counts'].decode('ascii')}
            annotation['area'] = float(coco_mask.area(code))
        annotations.append(annotation)
    return Counter(found.labels.tolist())


def _write_map(path: Path, sample: Any, score: float, from_one: bool) -> dict[int, int]:
    """Writes a PNG file whose pixels are classes, the first one 0 or 1; returns how many are of each."""
    scores = sample.seg_logits.data
    if len(scores) == 1:  # mmseg has taken the sigmoid
        likely = torch.maximum(scores[0], 1 - scores[0])
    else:
        # Heads like Mask2Former's give probabilities, which are not negative, where others give logits.
        likely = (scores if scores.min() >= 0 else scores.softmax(0)).amax(0)
    labels = sample.pred_sem_seg.data[0].masked_fill(likely < score, IGNORED)
    stored = (labels + from_one).masked_fill(labels == IGNORED, IGNORED)
    write_bytes(path, cv2.imencode('.png', stored.numpy().astype(np.uint8))[1].tobytes())
    return dict(zip_equal(*(part.tolist() for part in labels[labels != IGNORED].unique(return_counts=True))))
