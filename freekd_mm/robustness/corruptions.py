"""The 15 common corruptions, with ImageNet-C's parameters by severity, made for pictures of 224 pixels and larger.

Each takes a picture (H, W, 3) of floats in [0, 1], blue, green, red. Frost is drawn here: its photographs are not ours.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Union

import cv2
import numpy as np
from numpy.typing import NDArray

from freekd_mm.checks import check_choice
from freekd_mm.registry import TRANSFORMS

# OpenCV's stubs promise no more than numbers.
Picture = NDArray[Union[np.integer, np.floating]]
Random = np.random.Generator


def line(length: int, sigma: float, angle: float) -> Picture:
    """Returns the kernel of a movement: half a normal curve along a line, of sum 1."""
    kernel = np.zeros((2 * length + 1, 2 * length + 1))
    for step in range(length):
        row, column = round(length + step * np.sin(angle)), round(length + step * np.cos(angle))
        kernel[row, column] += np.exp(-(step**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def convolve(x: Picture, kernel: Picture) -> Picture:
    """Filters with mirrored borders."""
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def zoom(x: Picture, factor: float) -> Picture:
    """Enlarges the middle, size unchanged."""
    height, width = x.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), 0, factor)
    return cv2.warpAffine(x, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def plasma(shape: tuple[int, ...], decay: float, random: Random) -> Picture:
    """Returns a cloud (H, W) in [0, 1]: noise of every octave, each ``decay`` times weaker than the coarser one."""
    height, width = shape[:2]
    cloud, weight, cells = np.zeros((height, width)), 1.0, 2
    while cells < max(height, width):
        grid = random.random((cells + 1, cells + 1))
        cloud += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        weight, cells = weight / decay, cells * 2
    cloud -= cloud.min()
    return cloud / max(cloud.max(), 1e-12)


#: Function and parameters of severity 1 to 5 by name, in the order of the benchmark.
CORRUPTIONS: dict[str, tuple[Callable[..., Picture], tuple[tuple[Any, ...], ...]]] = {}


def severities(*parameters: Any) -> Callable[[Callable[..., Picture]], Callable[..., Picture]]:
    """Registers a corruption with its parameters for severity 1 to 5."""

    def register(function: Callable[..., Picture]) -> Callable[..., Picture]:
        given = tuple(values if isinstance(values, tuple) else (values,) for values in parameters)
        CORRUPTIONS[function.__name__] = (function, given)
        return function

    return register


@severities(0.08, 0.12, 0.18, 0.26, 0.38)
def gaussian_noise(x: Picture, random: Random, scale: float) -> Picture:
    """Adds normal noise."""
    return x + random.normal(scale=scale, size=x.shape)


@severities(60, 25, 12, 5, 3)
def shot_noise(x: Picture, random: Random, photons: int) -> Picture:
    """Counts few photons."""
    return random.poisson(np.clip(x, 0, 1) * photons) / photons


@severities(0.03, 0.06, 0.09, 0.17, 0.27)
def impulse_noise(x: Picture, random: Random, share: float) -> Picture:
    """Sets a share of the values to black or white."""
    hit = random.random(x.shape) < share
    return np.where(hit, random.random(x.shape) < 0.5, x)


@severities((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
def defocus_blur(x: Picture, random: Random, radius: int, sigma: float) -> Picture:
    """Filters with a disk with soft edges."""
    reach, soft = max(radius, 8), 3 if radius <= 8 else 5
    axis = np.arange(-reach, reach + 1)
    disk = (axis[:, None] ** 2 + axis[None] ** 2 <= radius**2).astype(np.float64)
    return convolve(x, cv2.GaussianBlur(disk / disk.sum(), (soft, soft), sigma))


@severities((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
def glass_blur(x: Picture, random: Random, sigma: float, reach: int, rounds: int) -> Picture:
    """Swaps pixels with near ones, as through frosted glass, all of a picture at the same time."""
    x = cv2.GaussianBlur(x, (0, 0), sigma)
    places = np.indices(x.shape[:2])
    last = np.array(x.shape[:2])[:, None, None] - 1
    for _ in range(rounds):
        rows, columns = np.clip(places + random.integers(-reach, reach + 1, places.shape), 0, last)
        x = x[rows, columns]
    return cv2.GaussianBlur(x, (0, 0), sigma)


@severities((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
def motion_blur(x: Picture, random: Random, length: int, sigma: float) -> Picture:
    """Moves the camera along a line."""
    return convolve(x, line(length, sigma, np.deg2rad(random.uniform(-45, 45))))


@severities((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
def zoom_blur(x: Picture, random: Random, end: float, step: float) -> Picture:
    """Averages over rising magnifications."""
    factors = np.arange(1, end, step)
    return (x + sum(zoom(x, factor) for factor in factors)) / (len(factors) + 1)


@severities(
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
def snow(x: Picture, random: Random, *parameters: Any) -> Picture:
    """Pales the picture and lets flakes fall across it."""
    mean, scale, size, least, length, sigma, mix = parameters
    flakes = zoom(random.normal(mean, scale, x.shape[:2]), size)
    flakes[flakes < least] = 0
    flakes = convolve(np.clip(flakes, 0, 1), line(length, sigma, np.deg2rad(random.uniform(45, 135))))[..., None]
    gray = (x @ np.array([0.114, 0.587, 0.299]))[..., None]
    pale = mix * x + (1 - mix) * np.maximum(x, gray * 1.5 + 0.5)
    return pale + flakes + np.rot90(flakes, 2)


@severities((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
def frost(x: Picture, random: Random, keep: float, ice: float) -> Picture:
    """Lays ice over the picture: bright needles on a cloud, the more the nearer to the border."""
    height, width = x.shape[:2]
    needles = np.zeros((height, width))
    for _ in range(5):
        grains = (random.random((height, width)) > 0.985).astype(np.float64)
        needles += convolve(grains, line(max(height // 12, 3), height / 20, random.uniform(0, 2 * np.pi)))
    needles = np.clip(needles / max(float(np.quantile(needles, 0.98)), 1e-12), 0, 1)
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    border = 0.4 + 0.6 * np.clip(np.hypot(rows, columns) / 1.2, 0, 1)
    sheet = border * (0.55 * plasma(x.shape, 1.7, random) + 0.45 * needles)
    return keep * x + ice * sheet[..., None] * np.array([1.0, 0.96, 0.9])


@severities((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
def fog(x: Picture, random: Random, amount: float, decay: float) -> Picture:
    """Adds a cloud and keeps the brightest value."""
    most = x.max()
    return (x + amount * plasma(x.shape, decay, random)[..., None]) * most / (most + amount)


@severities(0.1, 0.2, 0.3, 0.4, 0.5)
def brightness(x: Picture, random: Random, amount: float) -> Picture:
    """Raises the value of HSV."""
    hsv = cv2.cvtColor(np.clip(x, 0, 1).astype(np.float32), cv2.COLOR_BGR2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + amount, 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR).astype(x.dtype)


@severities(0.4, 0.3, 0.2, 0.1, 0.05)
def contrast(x: Picture, random: Random, share: float) -> Picture:
    """Shrinks the values towards the mean of each channel."""
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * share + mean


@severities((2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
def elastic_transform(x: Picture, random: Random, reach: float, smooth: float, affine: float) -> Picture:
    """Stretches locally: a smooth random displacement, its size relative to the shorter side."""
    height, width = x.shape[:2]
    size, mirror = min(height, width), cv2.BORDER_REFLECT_101
    middle, third = np.array([width, height], np.float32) / 2, size / 3
    corners = np.array([middle + third, [middle[0] + third, middle[1] - third], middle - third], np.float32)
    moved = corners + random.uniform(-affine * size * 0.1, affine * size * 0.1, corners.shape).astype(np.float32)
    x = cv2.warpAffine(x, cv2.getAffineTransform(corners, moved), (width, height), borderMode=mirror)
    right, down = (
        cv2.GaussianBlur(random.uniform(-1, 1, (height, width)), (0, 0), max(smooth * size, 0.5)) * reach * size
        for _ in range(2)
    )
    rows, columns = np.indices((height, width))
    places = ((columns + right).astype(np.float32), (rows + down).astype(np.float32))
    return cv2.remap(x, *places, cv2.INTER_LINEAR, borderMode=mirror)


@severities(0.6, 0.5, 0.4, 0.3, 0.25)
def pixelate(x: Picture, random: Random, share: float) -> Picture:
    """Reduces and enlarges."""
    height, width = x.shape[:2]
    small = cv2.resize(x, (max(int(width * share), 1), max(int(height * share), 1)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


@severities(25, 18, 15, 10, 7)
def jpeg_compression(x: Picture, random: Random, quality: int) -> Picture:
    """Saves as JPEG of low quality."""
    pixels = np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)
    _, data = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR).astype(x.dtype) / 255


SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(picture: NDArray[np.uint8], corruption: str, severity: int, seed: int = 0) -> NDArray[np.uint8]:
    """Returns a corrupted copy of a picture (H, W, 3), blue, green, red; the seed is for what is random in it."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f'picture should be uint8 (H, W, 3), but got {picture.dtype} {picture.shape}')
    function, parameters = CORRUPTIONS[corruption]
    result = function(picture / 255.0, np.random.default_rng(seed), *parameters[severity - 1])
    return np.round(np.clip(result, 0, 1) * 255).astype(np.uint8)


@TRANSFORMS.register_module()
class Corrupt:
    """Pipeline step after ``LoadImageFromFile``; two models see the same corrupted pictures.

    Args:
        corruption: A name of ``CORRUPTIONS``.
        severity: 1 to 5.
    """

    def __init__(self, corruption: str, severity: int) -> None:
        check_choice('corruption', corruption, CORRUPTIONS)
        check_choice('severity', severity, SEVERITIES)
        self.corruption, self.severity = corruption, severity

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Corrupts ``results['img']``; the file's name is the seed."""
        name = str(results['img_path']).replace('\\', '/').rsplit('/', 1)[-1]
        seed = zlib.crc32(f'{self.corruption}/{self.severity}/{name}'.encode())
        return {**results, 'img': corrupt(results['img'], self.corruption, self.severity, seed)}
