"""What the generated scenes are made of: textures and light, and things drawn from distance fields."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Tuple

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]  # float32; OpenCV and numpy promise less to the type checker
Rng = np.random.Generator

# Dark ink between the planks and threads: a narrow line needs a steep profile.
_LINE_SHARPNESS = 8.0
#: Coordinates of a patch in the object's own frame (pixels), and its half axes.
Pose = Tuple[Field, Field, float, float]
#: Outline, pattern and shade, each (h, w).
Shape = Tuple[Field, Field, Field]
_TEETH = {'gear': 8, 'saw': 16}


def grid(size: int) -> tuple[Field, Field]:
    """Returns the pixel coordinates x and y, each (size, size)."""
    axis = np.arange(size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def smooth_noise(rng: Rng, size: int, cells: int) -> Field:
    """Returns (size, size) noise of unit variance at the knots, with ``cells`` knots a side, cubic in between."""
    knots = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(knots, (size, size), interpolation=cv2.INTER_CUBIC)


def fine_noise(rng: Rng, size: int, sigma: float) -> Field:
    """Returns white noise blurred by ``sigma`` pixels and brought back to unit variance."""
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), dtype=np.float32), (0, 0), sigma)
    return noise / np.float32(noise.std() + 1e-6)


def random_colour(rng: Rng) -> Field:
    """Returns a muted colour (3,) in [0, 1]; every class draws from it, so that colour tells nothing."""
    return np.clip(rng.uniform(0.25, 0.75) + rng.uniform(-0.18, 0.18, 3), 0.05, 0.95).astype(np.float32)


def two_colours(rng: Rng) -> tuple[Field, Field]:
    """Returns two colours that differ in brightness by enough to be told apart."""
    first = random_colour(rng)
    contrast = rng.uniform(0.28, 0.55) * (-1.0 if first.mean() > 0.5 else 1.0)
    second = first + contrast + rng.uniform(-0.08, 0.08, 3)
    return first, np.clip(second, 0.0, 1.0).astype(np.float32)


def _lines(phase: Field) -> Field:
    """Returns a pattern with one thin dark line a period of ``phase`` (in radians)."""
    return 1 - 2 * np.exp(_LINE_SHARPNESS * (np.cos(phase) - 1))


def ground_pattern(rng: Rng, name: str, size: int) -> Field:
    """Returns the texture of one kind of stuff, (size, size), roughly in [-1, 1]."""
    # Sand and gravel differ by the grain alone; planks and weave by the second direction of their lines.
    if name == 'sand':
        return 0.5 * fine_noise(rng, size, 0.6)
    if name == 'gravel':
        return 0.6 * np.tanh(1.5 * fine_noise(rng, size, 1.4))
    x, y = grid(size)
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 9)
    bend = 1.5 * smooth_noise(rng, size, 4)
    scale = 2 * math.pi / period
    along = _lines(scale * (math.cos(angle) * x + math.sin(angle) * y + bend))
    if name == 'weave':
        # Half the density in each of two directions: as much ink as the planks have.
        across = _lines(scale / 2 * (math.sin(angle) * x - math.cos(angle) * y + bend))
        along = np.minimum(_lines(scale / 2 * (math.cos(angle) * x + math.sin(angle) * y + bend)), across)
    return 0.5 * along + 0.2 * fine_noise(rng, size, 0.7)


def region_map(rng: Rng, size: int, regions: int) -> NDArray[np.intp]:
    """Returns (size, size) indices 0 .. regions - 1: nearest of random points, with crooked borders."""
    x, y = grid(size)
    x = x + 0.08 * size * smooth_noise(rng, size, 6)
    y = y + 0.08 * size * smooth_noise(rng, size, 6)
    points = rng.uniform(0, size, (regions, 2)).astype(np.float32)
    return np.argmin([(x - px) ** 2 + (y - py) ** 2 for px, py in points], axis=0)


def light(rng: Rng, size: int) -> Field:
    """Returns a factor on the brightness, (size, size, 3): a slope, soft patches of shade, and a tint."""
    x, y = grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    slope = (math.cos(angle) * (x / size - 0.5) + math.sin(angle) * (y / size - 0.5)) * rng.uniform(0, 0.7)
    patches = rng.uniform(0, 0.16) * smooth_noise(rng, size, 4)
    tint = rng.uniform(0.9, 1.1, 3).astype(np.float32)
    return (np.clip(rng.uniform(0.75, 1.15) + slope + patches, 0.3, 1.6)[..., None] * tint).astype(np.float32)


class Sprite(NamedTuple):
    """An object on its own patch."""

    colour: Field  # (h, w, 3), in [0, 1]
    opacity: Field  # (h, w), in [0, 1]; less than 1 at the border and where the ground shows through
    outline: Field  # (h, w), in [0, 1]; its half is the border of the mask


def _pose(rng: Rng, radius: float, squeeze: tuple[float, float]) -> Pose:
    a, b = radius, radius * rng.uniform(*squeeze)
    angle = rng.uniform(0, 2 * math.pi)
    # The corners of a plate reach farthest: hypot(1, 0.8).
    half = math.ceil(1.29 * radius) + 1
    axis = np.arange(-half, half + 1, dtype=np.float32) + np.float32(rng.uniform(-0.5, 0.5))
    y, x = np.meshgrid(axis, axis, indexing='ij')
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x, a, b


def _wave(coordinate: Field, period: float) -> Field:
    """Returns a square wave with soft edges in [0, 1]."""
    return np.clip(0.5 + 1.3 * np.sin(coordinate * np.float32(2 * math.pi / period)), 0, 1)


def _ball(rng: Rng, name: str, pose: Pose, period: float) -> Shape:
    u, v, a, b = pose
    distance = np.sqrt((u / a) ** 2 + (v / b) ** 2)
    outline = np.clip((1 - distance) * min(a, b) + 0.5, 0, 1)
    if name == 'striped_ball':
        pattern = _wave(u, period)
    else:
        # The squares are as wide as the stripes.
        pattern = np.clip(0.5 + 1.3 * np.sin(u * (2 * math.pi / period)) * np.sin(v * (2 * math.pi / period)), 0, 1)
    return outline, pattern, np.clip(1.15 - 0.45 * distance**2, 0.5, 1.15)


def _plate(rng: Rng, name: str, pose: Pose, period: float) -> Shape:
    u, v, a, b = pose
    distance = np.minimum(a - np.abs(u), b - np.abs(v))
    period = 1.25 * period
    # The mesh has bars both ways, farther apart: as much ink as the grate.
    bars = _wave(v, period) if name == 'grate' else np.maximum(_wave(u, 1.5 * period), _wave(v, 1.5 * period))
    frame = np.clip(2.5 - distance, 0, 1)
    slope = rng.uniform(-0.25, 0.25)
    return np.clip(distance + 0.5, 0, 1), np.maximum(bars, frame), np.clip(1 + slope * u / a, 0.6, 1.3)


def _wheel(rng: Rng, name: str, pose: Pose, period: float) -> Shape:
    u, v, a, _ = pose
    distance, angle = np.hypot(u, v), np.arctan2(v, u)
    teeth = _TEETH.get(name, 0)
    # Many teeth are short, so that both wheels have the same mean radius and the same slope at the rim.
    depth = 0.13 * min(1.0, 10 / max(teeth, 1))
    reach = a * (0.96 + depth * np.clip(2 * np.sin(teeth * angle), -1, 1))
    hub = np.clip(0.28 * a - distance + 0.5, 0, 1)
    if name == 'saw':
        # Radial slits, one for every second tooth, thin at any distance.
        slits = np.clip(1.2 - np.abs(np.sin(teeth / 4 * angle)) * distance * (4 / teeth), 0, 1)
    else:
        slits = np.clip(1.2 - np.abs(distance - 0.62 * a), 0, 1)
    return np.clip(reach - distance + 0.5, 0, 1), 1 - np.maximum(hub, 0.7 * slits), 1 + 0.2 * np.sin(2 * angle)


#: How each thing is drawn, and between which ratios its half axes are.
SHAPES = {
    'striped_ball': (_ball, (0.75, 1.0)),
    'checked_ball': (_ball, (0.75, 1.0)),
    'grate': (_plate, (0.5, 0.8)),
    'mesh': (_plate, (0.5, 0.8)),
    'gear': (_wheel, (1.0, 1.0)),
    'saw': (_wheel, (1.0, 1.0)),
}


def thing(rng: Rng, name: str, radius: float) -> Sprite:
    """Draws one object of a class in :data:`SHAPES`; its radius is half of the longer axis in pixels."""
    # Fine at every scale: a few pixels, only slightly wider on a large object.
    period = rng.uniform(3.2, 4.2) * max(1.0, radius / 18)
    colours = two_colours(rng)
    draw, squeeze = SHAPES[name]
    outline, pattern, shade = draw(rng, name, _pose(rng, radius, squeeze), period)
    opacity = outline * (0.6 + 0.4 * pattern) if draw is _plate else outline
    return _sprite(*colours, outline, opacity, pattern, shade)


def distractor(rng: Rng, radius: float) -> Sprite:
    """Draws an object with the outline of a thing but plain or mottled: it belongs to no class."""
    draw, squeeze = ((_ball, (0.75, 1.0)), (_plate, (0.45, 0.8)), (_wheel, (1.0, 1.0)))[rng.integers(3)]
    colours = two_colours(rng)
    outline, pattern, shade = draw(rng, 'none', _pose(rng, radius, squeeze), 4)
    if rng.random() < 0.5:
        pattern = np.zeros_like(outline)
    elif draw is not _wheel:
        pattern = np.clip(0.5 + 0.3 * fine_noise(rng, outline.shape[0], 1.0), 0, 1)
    return _sprite(*colours, outline, outline, pattern, shade)


def bar(rng: Rng, size: int) -> Sprite:
    """Draws a thin straight bar through the whole picture, of about 1/40 of its width."""
    x, y = grid(size)
    angle = rng.choice([0.0, math.pi / 2]) + rng.normal(0, 0.25)
    middle = rng.uniform(0.1, 0.9, 2) * size
    width = max(1.5, size / 160 * rng.uniform(1.6, 2.6))
    across = math.cos(angle) * (x - middle[0]) + math.sin(angle) * (y - middle[1])
    outline = np.clip(width - np.abs(across) + 0.5, 0, 1)
    # A light line along the middle, dark edges: no texture of the ground has this profile.
    pattern = np.clip(1.2 - np.abs(across) / width, 0, 1)
    dark, bright = sorted(two_colours(rng), key=np.mean)
    return _sprite(dark, bright, outline, outline, pattern, np.ones_like(outline))


def _sprite(first: Field, second: Field, outline: Field, opacity: Field, pattern: Field, shade: Field) -> Sprite:
    mixed = first + pattern[..., None] * (second - first)
    colour = np.clip(mixed * shade[..., None], 0, 1).astype(np.float32)
    return Sprite(colour, opacity.astype(np.float32), outline.astype(np.float32))
