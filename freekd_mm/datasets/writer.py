"""Writes generated scenes as files, in the layouts of COCO and of Cityscapes side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from freekd_mm.checks import check_positive
from freekd_mm.datasets.classes import THINGS
from freekd_mm.datasets.scenes import MIN_SIZE, SPLITS, Scene, render_scene
from freekd_mm.files import write_text

CITY = 'sceneville'
MANIFEST = 'scenes.json'

# Raised whenever the same settings give other pictures, so that old folders are made anew.
_VERSION = 1
_FAST_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]
_PART = '.part'
_FOLDERS = ('annotations', 'train2017', 'val2017', 'leftImg8bit', 'gtFine')

Progress = Callable[[int, int], None]


def write_scenes(
    root: str | Path,
    num_train: int = 560,
    num_val: int = 150,
    size: int = 160,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Writes the data set below ``root`` unless it is there; one call serves detection and segmentation.

    COCO: ``annotations/instances_{train,val}2017.json``, ``{train,val}2017/*.png``; boxes around, and RLE masks
    of, what is in sight. Cityscapes: ``leftImg8bit/{train,val}/<city>/*_leftImg8bit.png`` and
    ``gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png`` (255 is ignored).

    Every file appears whole or not at all, and ``scenes.json`` says what was asked for and whether it is
    complete: a call after an interrupted one writes what is missing, a call with other settings replaces the
    files of the earlier one.

    Args:
        root: Folder to write to. It must be absent, empty, or made by this function.
        num_train: Number of training pictures.
        num_val: Number of validation pictures.
        size: Width and height in pixels.
        seed: Seed. A picture depends on the seed, its split, its number and the size alone.
        progress: Called with (done, total) after every picture that was drawn.

    Returns:
        ``root`` as a path.

    Raises:
        FileExistsError: ``root`` holds files that this function did not make.
    """
    root = Path(root)
    counts = {'train': num_train, 'val': num_val}
    for split, count in counts.items():
        check_positive(f'num_{split}', count, integer=True)
    check_positive('size', size, integer=True)
    check_positive('seed', seed, integer=True, zero=True)
    if size < MIN_SIZE:
        raise ValueError(f'size should be at least {MIN_SIZE}, but got {size}')
    settings = {'version': _VERSION, 'num_train': num_train, 'num_val': num_val, 'size': size, 'seed': seed}

    manifest = _read_manifest(root)
    if manifest is not None and manifest['settings'] != settings:
        _remove(root, manifest['settings'])
        manifest = None
    if manifest is not None and manifest['complete'] and all(path.is_file() for path in _files(root, settings)):
        return root
    _write_json(root / MANIFEST, {'settings': settings, 'complete': False})
    total, done = sum(counts.values()), 0
    for split, count in counts.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            scene = render_scene(seed, index, split, size)
            _write_pictures(root, split, index, scene)
            images.append({'id': index + 1, 'file_name': _coco_name(index), 'height': size, 'width': size})
            annotations.extend(_annotations(scene, index + 1, len(annotations) + 1))
            done += 1
            if progress is not None:
                progress(done, total)
        _write_json(_coco_file(root, split), _coco(images, annotations))
    _write_json(root / MANIFEST, {'settings': settings, 'complete': True})
    return root


def mask_to_rle(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Returns COCO's uncompressed run lengths of a mask (H, W): column by column, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order='F'), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    if changes.size and changes[-1] == mask.size:
        runs = runs[:-1]
    return {'size': list(mask.shape), 'counts': runs.tolist()}


def _read_manifest(root: Path) -> dict[str, Any] | None:
    """Returns the manifest, or None for a folder that is still to be made."""
    path = root / MANIFEST
    if path.is_file():
        try:
            manifest = json.loads(path.read_text())
            if set(manifest) == {'settings', 'complete'}:
                return manifest
        except (json.JSONDecodeError, TypeError):
            pass  # Not ours: falls through to the question whether the folder holds anything.
    if root.exists() and (not root.is_dir() or any(entry.suffix != _PART for entry in root.iterdir())):
        raise FileExistsError(
            f'root should be an absent or empty folder, or one made by write_scenes, but got {str(root)!r} which holds '
            'other files. Name another folder, or remove this one yourself.'
        )
    return None


def _coco_name(index: int) -> str:
    return f'{index + 1:012d}.png'


def _coco_file(root: Path, split: str) -> Path:
    return root / 'annotations' / f'instances_{split}2017.json'


def _picture_files(root: Path, split: str, index: int) -> tuple[Path, Path, Path]:
    """Returns the paths of the COCO picture, the Cityscapes picture and the label map."""
    stem = f'{CITY}_{index:06d}_000019'
    return (
        root / f'{split}2017' / _coco_name(index),
        root / 'leftImg8bit' / split / CITY / f'{stem}_leftImg8bit.png',
        root / 'gtFine' / split / CITY / f'{stem}_gtFine_labelTrainIds.png',
    )


def _files(root: Path, settings: dict[str, int]) -> Iterator[Path]:
    """Yields every file but the manifest that a data set of these settings consists of."""
    for split in SPLITS:
        yield _coco_file(root, split)
        for index in range(settings[f'num_{split}']):
            yield from _picture_files(root, split, index)


def _remove(root: Path, settings: dict[str, int]) -> None:
    """Removes the files of an earlier data set, and the folders that are empty then; leaves all other files."""
    # First, so that a removal that is cut short is seen as an unfinished data set of the old settings.
    _write_json(root / MANIFEST, {'settings': settings, 'complete': False})
    for path in _files(root, settings):
        path.unlink(missing_ok=True)
    for name in _FOLDERS:
        for left_over in (root / name).rglob(f'*{_PART}'):
            left_over.unlink(missing_ok=True)
        for folder, _, _ in os.walk(root / name, topdown=False):
            if not os.listdir(folder):
                os.rmdir(folder)


def _write_bytes(path: Path, data: bytes) -> None:
    """Writes a picture so that it is there whole or not at all.

    Unlike :func:`freekd_mm.files.write_atomically` it does not wait for the disk, which would take longer than
    drawing all pictures.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}{_PART}')
    part.write_bytes(data)
    os.replace(part, path)


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, separators=(',', ':')))


def _write_pictures(root: Path, split: str, index: int, scene: Scene) -> None:
    coco, cityscapes, labels = _picture_files(root, split, index)
    if coco.is_file() and cityscapes.is_file() and labels.is_file():
        return
    image = cv2.imencode('.png', scene.image, _FAST_PNG)[1].tobytes()
    _write_bytes(coco, image)
    cityscapes.unlink(missing_ok=True)
    cityscapes.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(coco, cityscapes)  # the same picture once on the disk
    except OSError:
        _write_bytes(cityscapes, image)
    _write_bytes(labels, cv2.imencode('.png', scene.labels)[1].tobytes())


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    annotations = []
    for place, label in enumerate(scene.classes):
        mask = scene.instances == place
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        annotations.append(
            {
                'id': first_id + place,
                'image_id': image_id,
                'category_id': label + 1,
                'bbox': [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                'area': int(mask.sum()),
                'segmentation': mask_to_rle(mask),
                'iscrowd': 0,
            }
        )
    return annotations


def _coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        'info': {'description': 'Scenes generated by freekd_mm', 'version': str(_VERSION)},
        'licenses': [],
        'categories': [{'id': place + 1, 'name': name, 'supercategory': 'thing'} for place, name in enumerate(THINGS)],
        'images': images,
        'annotations': annotations,
    }
