"""The files: real layouts, byte for byte the same, there as a whole or not at all, and nobody else's touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import scenes
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scenes import CITY, THINGS, render_scene, write_scenes

REPOSITORY = Path(__file__).parents[2]
SETTINGS = {'num_train': 3, 'num_val': 2, 'size': 48, 'seed': 7}


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def test_layouts_hold_the_scenes(tmp_path):
    root = write_scenes(tmp_path / 'scenes', **SETTINGS)
    for split, count in (('train', 3), ('val', 2)):
        coco = COCO(root / f'annotations/instances_{split}2017.json')
        assert len(coco.imgs) == count
        assert [category['name'] for category in coco.cats.values()] == list(THINGS)
        cityscapes = sorted((root / f'leftImg8bit/{split}/{CITY}').iterdir())
        label_maps = sorted((root / f'gtFine/{split}/{CITY}').iterdir())
        assert len(cityscapes) == len(label_maps) == count
        for index, (image_id, info) in enumerate(coco.imgs.items()):
            scene = render_scene(7, index, split, 48)
            assert np.array_equal(cv2.imread(str(root / f'{split}2017' / info['file_name'])), scene.image)
            assert np.array_equal(cv2.imread(str(cityscapes[index])), scene.image)
            assert np.array_equal(cv2.imread(str(label_maps[index]), cv2.IMREAD_UNCHANGED), scene.labels)
            annotations = coco.loadAnns(coco.getAnnIds(image_id))
            assert len(annotations) == len(scene.classes)
            for place, annotation in enumerate(annotations):
                mask = coco.annToMask(annotation).astype(bool)
                assert np.array_equal(mask, scene.instances == place)
                assert annotation['category_id'] == scene.classes[place] + 1
                assert annotation['area'] == mask.sum()
                packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                assert annotation['bbox'] == coco_mask.toBbox(packed).tolist()


def test_names_are_those_of_coco_and_cityscapes(tmp_path):
    names = set(contents(write_scenes(tmp_path / 'scenes', **SETTINGS)))
    assert f'leftImg8bit/val/{CITY}/{CITY}_000000_000019_leftImg8bit.png' in names
    assert f'gtFine/train/{CITY}/{CITY}_000002_000019_gtFine_labelTrainIds.png' in names
    assert 'train2017/000000000001.png' in names
    # Pictures twice, label maps, two annotation files, the manifest.
    assert len(names) == 5 * 3 + 2 + 1


def test_same_seed_same_bytes_and_more_pictures_keep_the_first(tmp_path):
    first = contents(write_scenes(tmp_path / 'first', **SETTINGS))
    assert contents(write_scenes(tmp_path / 'second', **SETTINGS)) == first
    more = contents(write_scenes(tmp_path / 'more', **{**SETTINGS, 'num_train': 4}))
    assert all(more[name] == data for name, data in first.items() if name.endswith('.png'))


def test_complete_data_set_is_left_alone(tmp_path):
    root = write_scenes(tmp_path / 'scenes', **SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    write_scenes(root, **SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before


def test_an_interrupted_call_leaves_no_folder_and_is_repeated(tmp_path, monkeypatch):
    whole = contents(write_scenes(tmp_path / 'whole', **SETTINGS))
    render = scenes.render_scene

    def interrupt(seed, index, split, size):
        if index == 1:
            raise KeyboardInterrupt
        return render(seed, index, split, size)

    monkeypatch.setattr(scenes, 'render_scene', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / 'cut', **SETTINGS)
    monkeypatch.undo()
    assert not (tmp_path / 'cut').exists()
    assert contents(write_scenes(tmp_path / 'cut', **SETTINGS)) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ['cut', 'whole']


def test_scenes_of_other_settings_are_left_alone(tmp_path):
    before = contents(write_scenes(tmp_path / 'scenes', **SETTINGS))
    with pytest.raises(FileExistsError, match='exists and was made or edited by a person'):
        write_scenes(tmp_path / 'scenes', **{**SETTINGS, 'seed': 8})
    assert contents(tmp_path / 'scenes') == before


@pytest.mark.parametrize('kind', ['files', 'broken manifest', 'file'])
def test_folder_of_somebody_else_is_refused(tmp_path, kind):
    root = tmp_path / 'theirs'
    if kind == 'file':
        root.write_text('theirs')
    else:
        root.mkdir()
        (root / 'theirs.txt').write_text('theirs')
    if kind == 'broken manifest':
        (root / 'scenes.json').write_text('{}')
    with pytest.raises(FileExistsError, match='the output should be new, but '):
        write_scenes(root, **SETTINGS)
    assert (root if kind == 'file' else root / 'theirs.txt').read_text() == 'theirs'


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match='num_val should be greater than 0, but got 0'):
        write_scenes(tmp_path / 'scenes', num_val=0)
    with pytest.raises(ValueError, match='size should be at least 48, but got 20'):
        write_scenes(tmp_path / 'scenes', size=20)
    assert not (tmp_path / 'scenes').exists()


def run_tool(*arguments):
    command = [sys.executable, str(REPOSITORY / 'tools/make_scenes.py'), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={'PYTHONPATH': str(REPOSITORY)}, check=False)


def test_tool_writes_the_data_set(tmp_path):
    result = run_tool(tmp_path / 'scenes', '--train', 3, '--val', 2, '--size', 48, '--seed', 7)
    assert result.returncode == 0, result.stderr
    assert 'drawing scenes, val' in result.stderr
    assert json.loads((tmp_path / 'scenes/scenes.json').read_text())['settings'] == {**SETTINGS, 'version': 1}
    assert contents(tmp_path / 'scenes') == contents(write_scenes(tmp_path / 'direct', **SETTINGS))


def test_tool_explains_a_refusal(tmp_path):
    (tmp_path / 'theirs.txt').write_text('theirs')
    result = run_tool(tmp_path, '--train', 3, '--val', 2, '--size', 48)
    assert result.returncode == 2
    assert 'Traceback' not in result.stderr
    assert 'error: the output should be new, but ' in result.stderr
