"""The 15 corruptions: repeatable, in range, stronger with severity, any size, and each doing what its name says."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from freekd_mm.robustness.corruptions import CORRUPTIONS, Corrupt, corrupt


@pytest.fixture(scope='module')
def picture() -> np.ndarray:
    """A street-like picture: smooth colours, edges and texture, (96, 128, 3)."""
    random = np.random.default_rng(0)
    rows, columns = np.indices((96, 128))
    smooth = np.stack([120 + 60 * np.sin(rows / 17), 100 + 50 * np.cos(columns / 23), 90 + rows / 2.0], -1)
    smooth[20:60, 30:70] = (40, 60, 160)
    smooth[70:90, 80:120] += 40 * ((rows + columns) % 6 < 3)[70:90, 80:120, None]
    return np.clip(smooth + random.normal(scale=3, size=smooth.shape), 0, 255).astype(np.uint8)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_there_are_fifteen():
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_a_corruption_repeats_and_keeps_shape_and_picture(picture, name):
    before = picture.copy()
    for severity in (1, 5):
        result = corrupt(picture, name, severity, seed=3)
        assert result.dtype == np.uint8
        assert result.shape == picture.shape
        assert np.array_equal(result, corrupt(picture, name, severity, seed=3))
        assert error(result, picture) > 1
    assert np.array_equal(picture, before)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize('name', sorted(set(CORRUPTIONS) - {'elastic_transform', 'contrast', 'pixelate'}))
def test_severity_five_is_less_like_the_picture_than_one(picture, name):
    mild, strong = (
        np.mean([similarity(corrupt(picture, name, s, seed), picture) for seed in range(3)]) for s in (1, 5)
    )
    assert 1 - strong > 1.2 * (1 - mild)


@pytest.mark.parametrize('name', ['contrast', 'pixelate'])
def test_severity_five_is_further_from_the_picture_than_one(picture, name):
    assert error(corrupt(picture, name, 5), picture) > error(corrupt(picture, name, 1), picture)


@pytest.mark.parametrize('name', CORRUPTIONS)
@pytest.mark.parametrize('size', [(33, 47), (8, 8)])
def test_odd_and_tiny_pictures_are_fine(name, size):
    small = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert corrupt(small, name, 5).shape == (*size, 3)


def test_noise_has_the_deviation_of_its_severity():
    flat = np.full((200, 200, 3), 128, np.uint8)
    noisy = corrupt(flat, 'gaussian_noise', 1).astype(float) / 255
    assert noisy.std() == pytest.approx(0.08, rel=0.02)
    assert noisy.mean() == pytest.approx(128 / 255, abs=2e-3)
    # A photon count of mean 60 * 0.502 deviates by its root.
    shot = corrupt(flat, 'shot_noise', 1).astype(float) / 255
    assert shot.std() == pytest.approx(np.sqrt(60 * 128 / 255) / 60, rel=0.02)
    hit = (corrupt(flat, 'impulse_noise', 3) != 128).mean()
    assert hit == pytest.approx(0.09, abs=0.005)


@pytest.mark.parametrize('name', ['defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur', 'pixelate'])
def test_blur_takes_away_detail_and_keeps_the_mean(picture, name):
    result = corrupt(picture, name, 3)
    detail = [cv2.Laplacian(image.astype(np.float64), cv2.CV_64F).std() for image in (picture, result)]
    assert detail[1] < 0.8 * detail[0]
    assert result.mean() == pytest.approx(picture.mean(), rel=0.05)


def test_contrast_and_brightness_do_what_they_say(picture):
    result = corrupt(picture, 'contrast', 2).astype(float)
    expected = (picture - picture.mean((0, 1))) * 0.3 + picture.mean((0, 1))
    assert np.abs(result - expected).max() <= 0.51
    assert corrupt(picture, 'brightness', 3).mean() > picture.mean() + 30


def test_jpeg_is_opencvs_own(picture):
    _, data = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 10])
    assert error(corrupt(picture, 'jpeg_compression', 4), cv2.imdecode(data, cv2.IMREAD_COLOR)) == 0


def test_the_file_is_the_seed_and_not_its_folder(picture):
    step = Corrupt('snow', 2)
    one, same, other = (
        step({'img': picture, 'img_path': path})['img'] for path in ('/a/x.jpg', '/b/x.jpg', '/a/y.jpg')
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_mistakes_are_named(picture):
    with pytest.raises(ValueError, match=r"corruption should be one of .*Did you mean 'snow'"):
        Corrupt('snows', 1)
    with pytest.raises(ValueError, match='severity should be one of 1, 2, 3, 4, 5, but got 6'):
        Corrupt('snow', 6)
    with pytest.raises(ValueError, match=r'picture should be uint8 \(H, W, 3\), but got float64'):
        corrupt(picture / 255, 'snow', 1)
