"""Generated scenes, for demo and tests: pictures, masks and label maps, each from (seed, split, index) alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from freekd_mm.checks import check_least, check_positive
from freekd_mm.files import check_output, make_room
from freekd_mm.text import track
from scenes import objects
from scenes.objects import Field, Rng, Sprite

# Each pair of things shares its outline and its colours and differs by fine structure alone.
_COLOURS = {
    'striped_ball': (220, 20, 60),
    'checked_ball': (255, 140, 0),
    'grate': (0, 110, 230),
    'mesh': (0, 190, 200),
    'gear': (150, 60, 200),
    'saw': (230, 90, 190),
    'sand': (222, 205, 150),
    'gravel': (130, 120, 110),
    'planks': (150, 100, 60),
    'weave': (110, 160, 90),
    'bar': (250, 240, 60),
}
CLASSES = tuple(_COLOURS)
THINGS, STUFF = CLASSES[:6], CLASSES[6:]
IGNORE_LABEL = 255

#: ``metainfo`` for ``mmdet.CocoDataset``: the things, whose COCO category ids are 1 to 6.
DET_METAINFO: dict[str, Any] = {'classes': THINGS, 'palette': [_COLOURS[name] for name in THINGS]}
#: ``metainfo`` for ``mmseg.BaseSegDataset``: all classes; the train id is the place in the tuple, 255 is ignored.
SEG_METAINFO: dict[str, Any] = {'classes': CLASSES, 'palette': [list(colour) for colour in _COLOURS.values()]}

SPLITS: tuple[str, ...] = ('train', 'val')
MIN_SIZE = 48
CITY = 'sceneville'
MANIFEST = 'scenes.json'
# Raised whenever the same settings give other files.
_VERSION = 1

# Share of an object that later ones must leave visible.
_MIN_VISIBLE = 0.55
_TRIES = 8
_NO_INSTANCE = -1


class Scene(NamedTuple):
    """One picture and what is visible in it."""

    image: NDArray[np.uint8]  # (size, size, 3), in OpenCV's order blue, green, red
    labels: NDArray[np.uint8]  # (size, size), places in CLASSES, or 255 for objects of no class
    instances: NDArray[np.int16]  # (size, size), places in ``classes``, or -1
    classes: tuple[int, ...]  # for each instance its place in THINGS; every instance has visible pixels


def _overlap(patch: Field, left: int, top: int, size: int) -> tuple[Any, Any]:
    """Returns where a patch lies in a picture, and which part of the patch that is."""
    height, width = patch.shape
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = max(y0, min(top + height, size)), max(x0, min(left + width, size))
    return np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]


class _Canvas:
    """The picture while it is painted, back to front."""

    def __init__(self, colour: Field, labels: NDArray[np.uint8]) -> None:
        self.colour, self.labels = colour, labels
        self.instances = np.full(labels.shape, _NO_INSTANCE, np.int16)
        self.classes: list[int] = []
        self._areas: list[int] = []

    def paste(self, sprite: Sprite, left: int, top: int, label: int, shadow: float = 0.0) -> bool:
        """Paints a sprite unless it would hide too much of a thing; says whether it did."""
        size, is_thing = self.labels.shape[0], label < len(THINGS)
        there, here = _overlap(sprite.outline, left, top, size)
        mask = sprite.outline[here] > 0.5
        area = int(mask.sum())
        # At the picture's edge at least half of a thing must be inside.
        if is_thing and area < max(12, 0.5 * int((sprite.outline > 0.5).sum())):
            return False
        if not self._leaves_in_sight(there, mask):
            return False
        if shadow:
            ground, part = _overlap(sprite.outline, left + 2, top + 3, size)
            self.colour[ground] *= 1 - shadow * cv2.GaussianBlur(sprite.outline, (0, 0), 2)[part][..., None]
        self.colour[there] += sprite.opacity[here][..., None] * (sprite.colour[here] - self.colour[there])
        self.labels[there][mask] = label
        self.instances[there][mask] = len(self.classes) if is_thing else _NO_INSTANCE
        if is_thing:
            self.classes.append(label)
            self._areas.append(area)
        return True

    def _leaves_in_sight(self, there: Any, mask: NDArray[np.bool_]) -> bool:
        count = len(self.classes)
        hidden = np.bincount(self.instances[there][mask] + 1, minlength=count + 1)[1:]
        seen = np.bincount(self.instances.ravel() + 1, minlength=count + 1)[1:]
        return bool(np.all(seen - hidden >= _MIN_VISIBLE * np.array(self._areas)))

    def scatter(self, rng: Rng, sprite: Sprite, label: int) -> None:
        """Pastes a sprite at a random place, and tries some others if it hides too much there."""
        size = self.labels.shape[0]
        height, width = sprite.opacity.shape
        shadow = rng.uniform(0, 0.5)
        for x, y in rng.uniform(0.04, 0.96, (_TRIES, 2)) * size:
            if self.paste(sprite, int(x) - width // 2, int(y) - height // 2, label, shadow):
                return


def render_scene(seed: int, index: int, split: str = 'train', size: int = 160) -> Scene:
    """Draws one scene; the same arguments give the same scene, no matter what was drawn before.

    The size in pixels is at least 48. The fine structure keeps its few pixels at any size.
    """
    check_positive('seed', seed, integer=True, zero=True)
    check_least('size', size, MIN_SIZE)
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    canvas = _ground(rng, size)
    _wires(rng, canvas, int(rng.integers(1, 5)))
    # Sizes are drawn evenly on a logarithmic scale; large ones first, so that they rarely cover small ones.
    radii = sorted(size * np.exp(rng.uniform(np.log(0.05), np.log(0.2), rng.integers(4, 10))), reverse=True)
    others = rng.permutation(len(radii) + 1)[: rng.integers(1, 4)]
    bars = rng.permutation(len(radii) + 1)[: rng.integers(1, 4)]
    for position, radius in enumerate(radii):
        if position in bars:
            canvas.paste(objects.bar(rng, size), 0, 0, CLASSES.index('bar'))
        if position in others:
            canvas.scatter(rng, objects.distractor(rng, float(radius)), IGNORE_LABEL)
        label = int(rng.integers(len(THINGS)))
        canvas.scatter(rng, objects.thing(rng, THINGS[label], float(radius)), label)
    _wires(rng, canvas, int(rng.integers(0, 3)))
    return Scene(_develop(rng, canvas.colour), canvas.labels, canvas.instances, tuple(canvas.classes))


def _ground(rng: Rng, size: int) -> _Canvas:
    kinds = [name for name in STUFF if name != 'bar']
    regions = objects.region_map(rng, size, int(rng.integers(3, 6)))
    labels = np.zeros((size, size), np.uint8)
    colour = np.zeros((size, size, 3), np.float32)
    for region in range(int(regions.max()) + 1):
        name = kinds[rng.integers(len(kinds))]
        pattern = rng.uniform(0.12, 0.22) * objects.ground_pattern(rng, name, size)
        mask = regions == region
        colour[mask] = (objects.random_colour(rng) + pattern[mask][:, None]).astype(np.float32)
        labels[mask] = CLASSES.index(name)
    return _Canvas(colour, labels)


def _wires(rng: Rng, canvas: _Canvas, count: int) -> None:
    """Draws thin curved lines that belong to no class and leave the labels as they are."""
    size = canvas.labels.shape[0]
    for _ in range(count):
        ends = rng.uniform(-0.1, 1.1, (3, 2)) * size
        t = np.linspace(0, 1, 24)[:, None]
        curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
        points = np.round(curve * 16).astype(np.int32).reshape(-1, 1, 2)
        ink = np.zeros((size, size), np.uint8)
        cv2.polylines(ink, [points], False, (255,), 1, cv2.LINE_AA, 4)
        opacity = (ink.astype(np.float32) * np.float32(rng.uniform(0.5, 0.9) / 255))[..., None]
        canvas.colour += opacity * (objects.random_colour(rng) - canvas.colour)


def _develop(rng: Rng, colour: Field) -> NDArray[np.uint8]:
    """Puts light, now and then a slight blur, and the camera's noise on the painted scene."""
    size = colour.shape[0]
    lit: Field = np.clip(colour, 0, 1) * objects.light(rng, size)
    if rng.random() < 0.25:
        lit = cv2.GaussianBlur(lit, (0, 0), float(rng.uniform(0.4, 0.7)))
    noise = rng.standard_normal((size, size, 3), dtype=np.float32) * np.float32(rng.uniform(0.005, 0.025))
    return np.round(np.clip(lit + noise, 0, 1) * 255).astype(np.uint8)


def write_scenes(
    root: str | Path, num_train: int = 560, num_val: int = 150, size: int = 160, seed: int = 0, force: bool = False
) -> Path:
    """Writes the data set to ``root`` unless it is there; one call serves detection and segmentation.

    COCO: ``annotations/instances_{train,val}2017.json``, ``{train,val}2017/*.png``; boxes around, and RLE masks
    of, what is visible. Cityscapes: ``leftImg8bit/{train,val}/<city>/*_leftImg8bit.png`` and
    ``gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png`` (255 is ignored).

    The folder appears when it is complete; ``scenes.json`` in it says what was asked for.
    """
    root = Path(root)
    counts = {'train': num_train, 'val': num_val}
    for split, count in counts.items():
        check_positive(f'num_{split}', count, integer=True)
    settings = {'version': _VERSION, 'num_train': num_train, 'num_val': num_val, 'size': size, 'seed': seed}
    manifest = root / MANIFEST
    if manifest.is_file() and json.loads(manifest.read_text()).get('settings') == settings:
        return root
    check_output(root, [], force, folder=True)

    part = root.resolve().with_name(f'.{root.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    for split, count in counts.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in track(range(count), f'drawing scenes, {split}'):
            scene = render_scene(seed, index, split, size)
            name, stem = f'{index + 1:012d}.png', f'{split}/{CITY}/{CITY}_{index:06d}_000019'
            image = cv2.imencode('.png', scene.image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
            _write(part / f'{split}2017/{name}', image)
            _write(part / f'leftImg8bit/{stem}_leftImg8bit.png', image)
            _write(part / f'gtFine/{stem}_gtFine_labelTrainIds.png', cv2.imencode('.png', scene.labels)[1].tobytes())
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


def _annotations(scene: Scene, image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    from pycocotools import mask as coco

    for place, label in enumerate(scene.classes):
        packed = coco.encode(np.asfortranarray(scene.instances == place, np.uint8))
        yield {
            'id': first_id + place,
            'image_id': image_id,
            'category_id': label + 1,
            'bbox': coco.toBbox(packed).tolist(),
            'area': int(coco.area(packed)),
            'segmentation': {'size': packed['size'], 'counts': packed['counts'].decode()},
            'iscrowd': 0,
        }
