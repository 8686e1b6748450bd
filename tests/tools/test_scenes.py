"""Scenes: the same for the same arguments, consistent with their labels, and look-alike in their classes."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from scenes import CLASSES, DET_METAINFO, IGNORE_LABEL, SEG_METAINFO, STUFF, THINGS, render_scene
from scenes.objects import SHAPES, ground_pattern, thing

from freekd_mm.compat.versions import zip_equal


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip_equal(first, second))


def test_scene_depends_on_its_arguments_alone():
    first = render_scene(3, 5, 'val', 64)
    render_scene(3, 4, 'val', 64)
    assert same(first, render_scene(3, 5, 'val', 64))


@pytest.mark.parametrize('other', [(4, 5, 'val', 64), (3, 6, 'val', 64), (3, 5, 'train', 64)])
def test_seed_index_and_split_change_the_scene(other):
    assert not np.array_equal(render_scene(3, 5, 'val', 64).image, render_scene(*other).image)


@pytest.mark.parametrize('size', [48, 81, 160])
def test_shapes_labels_and_instances_fit_together(size):
    for index in range(10):
        scene = render_scene(0, index, size=size)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.labels.shape == scene.instances.shape == (size, size)
        assert set(np.unique(scene.labels)) <= {*range(len(CLASSES)), IGNORE_LABEL}
        is_thing = scene.labels < len(THINGS)
        assert np.array_equal(is_thing, scene.instances >= 0)
        for place, label in enumerate(scene.classes):
            mask = scene.instances == place
            assert mask.any()
            assert (scene.labels[mask] == label).all()


def test_every_class_and_ignored_objects_appear():
    scenes = [render_scene(1, index, size=96) for index in range(40)]
    assert set(np.unique([scene.labels for scene in scenes])) == {*range(len(CLASSES)), IGNORE_LABEL}


def test_objects_have_several_scales():
    areas = [np.bincount(s.instances[s.instances >= 0]) for s in (render_scene(0, i) for i in range(20))]
    widths = np.sqrt(np.concatenate(areas))
    assert np.percentile(widths, 90) > 2 * np.percentile(widths, 10)


def low_share(difference, sigma=3.0):
    """The share of a difference's energy that a blur leaves: what a coarse feature map could see of it."""
    return (cv2.GaussianBlur(difference, (0, 0), sigma) ** 2).sum() / (difference**2).sum()


@pytest.mark.parametrize('pair', [('striped_ball', 'checked_ball'), ('grate', 'mesh'), ('gear', 'saw')])
def test_look_alikes_differ_by_fine_structure(pair):
    for seed in range(5):
        first, second = (thing(np.random.default_rng(seed), name, 16) for name in pair)
        assert first.opacity.shape == second.opacity.shape
        if pair[0] != 'gear':
            assert np.array_equal(first.outline, second.outline)
        # Brightness, so that the three channels count once.
        difference = (first.colour * first.opacity[..., None] - second.colour * second.opacity[..., None]).mean(-1)
        assert difference.any()
        assert low_share(difference) < 0.2


@pytest.mark.parametrize('name', [name for name in STUFF if name != 'bar'])
def test_ground_patterns_are_fine(name):
    pattern = ground_pattern(np.random.default_rng(0), name, 160)
    assert low_share(pattern - pattern.mean()) < 0.2


def test_metainfo_has_a_colour_a_class():
    assert set(SHAPES) == set(THINGS)
    for metainfo in (DET_METAINFO, SEG_METAINFO):
        assert len(set(metainfo['classes'])) == len(metainfo['classes']) == len(set(map(tuple, metainfo['palette'])))


def test_wrong_arguments():
    with pytest.raises(ValueError, match='size should be at least 48, but got 32'):
        render_scene(0, 0, size=32)
    with pytest.raises(TypeError, match='seed should be an integer'):
        render_scene(0.5, 0)


def test_imports_no_mm_package_and_no_torch():
    code = (
        'import sys, scenes; '
        "print([name for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmrazor') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'
