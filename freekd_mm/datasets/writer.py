"""Writes generated scenes as files, in the layouts of COCO and of Cityscapes side by side."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from freekd_mm.checks import check_positive
from freekd_mm.datasets.scenes import THINGS, Scene, render_scene
from freekd_mm.files import check_output, make_room
from freekd_mm.text import track

CITY = 'sceneville'
MANIFEST = 'scenes.json'

# Raised whenever the same settings give other files.
_VERSION = 1


def write_scenes(
    root: str | Path,
    num_train: int = 560,
    num_val: int = 150,
    size: int = 160,
    seed: int = 0,
    force: bool = False,
) -> Path:
    """Writes the data set to ``root`` unless it is there; one call serves detection and segmentation.

    COCO: ``annotations/instances_{train,val}2017.json``, ``{train,val}2017/*.png``; boxes around, and RLE masks
    of, what is visible. Cityscapes: ``leftImg8bit/{train,val}/<city>/*_leftImg8bit.png`` and
    ``gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png`` (255 is ignored).

    The folder appears when it is complete; ``scenes.json`` in it says what was asked for.

    The options are those of ``tools/make_scenes.py``. A picture depends on the seed, its split, its number and the size
    alone.
    """
    root = Path(root)
    counts = {'train': num_train, 'val': num_val}
    for split, count in counts.items():
        check_positive(f'num_{split}', count, integer=True)
    settings = {'version': _VERSION, 'num_train': num_train, 'num_val': num_val, 'size': size, 'seed': seed}
    manifest = root / MANIFEST
    if manifest.is_file() and json.loads(manifest.read_text()).get('settings') == settings:
        return root
    check_output(root, [], force)

    part = root.resolve().with_name(f'.{root.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    for split, count in counts.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in track(range(count), f'drawing scenes, {split}'):
            scene = render_scene(seed, index, split, size)
            name = f'{index + 1:012d}.png'
            _write_pictures(part, split, index, name, scene)
            images.append({'id': index + 1, 'file_name': name, 'height': size, 'width': size})
            annotations += _annotations(scene, index + 1, len(annotations) + 1)
        categories = [{'id': place + 1, 'name': name, 'supercategory': 'thing'} for place, name in enumerate(THINGS)]
        coco = {'images': images, 'annotations': annotations, 'categories': categories}
        _write(part / f'annotations/instances_{split}2017.json', json.dumps(coco, separators=(',', ':')).encode())
    _write(part / MANIFEST, json.dumps({'settings': settings}).encode())
    make_room(root)
    if root.is_dir():
        root.rmdir()
    part.rename(root)
    return root


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _write_pictures(root: Path, split: str, index: int, name: str, scene: Scene) -> None:
    stem = f'{split}/{CITY}/{CITY}_{index:06d}_000019'
    coco, cityscapes = root / f'{split}2017' / name, root / f'leftImg8bit/{stem}_leftImg8bit.png'
    image = cv2.imencode('.png', scene.image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    _write(coco, image)
    cityscapes.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(coco, cityscapes)  # the same picture once on the disk
    except OSError:
        _write(cityscapes, image)
    _write(root / f'gtFine/{stem}_gtFine_labelTrainIds.png', cv2.imencode('.png', scene.labels)[1].tobytes())


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    from pycocotools import mask as coco

    annotations = []
    for place, label in enumerate(scene.classes):
        packed = coco.encode(np.asfortranarray(scene.instances == place, np.uint8))
        annotations.append(
            {
                'id': first_id + place,
                'image_id': image_id,
                'category_id': label + 1,
                'bbox': coco.toBbox(packed).tolist(),
                'area': int(coco.area(packed)),
                'segmentation': {'size': packed['size'], 'counts': packed['counts'].decode()},
                'iscrowd': 0,
            }
        )
    return annotations
