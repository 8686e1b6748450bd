"""What users get wrong, and what they are told: the type and the text of each error."""

from __future__ import annotations

import pytest
import tiny_configs
from mmengine.config import Config
from wrong_use_cases import CASES, Place, classes, data, detector, entry, loss, model, teacher

from freekd_mm.checkpoints.sources import sha256
from freekd_mm.engine.preflight import check_data
from freekd_mm.runtime.distillation import Distillation


@pytest.mark.parametrize('name', CASES)
def test_wrong_use(name, tmp_path):
    action, kind, text = CASES[name]
    place = Place(tmp_path)
    with pytest.raises(kind) as caught:
        action(place)
    said, position = str(caught.value), 0
    for part in text.split('|'):
        position = said.find(part, position)
        assert position >= 0, f'{part!r} is missing in {said!r}'
    assert not isinstance(caught.value, AssertionError)


def test_there_are_enough():
    assert len(CASES) >= 40


# What may be meant is said in the log.
def warned(monkeypatch, module):
    lines = []
    monkeypatch.setattr(f'{module}.warn', lines.append)
    return lines


def test_no_class_is_missing(tmp_path, monkeypatch):
    """A data set without classes, or more categories than classes: nothing is wrong with its classes."""
    lines = warned(monkeypatch, 'freekd_mm.engine.preflight')
    (tmp_path / 'train2017').mkdir()
    (tmp_path / 'train2017/a.png').touch()
    categories = [{'id': 1, 'name': 'ball'}, {'id': 2, 'name': 'cube'}, {'id': 3, 'name': 'cube'}]
    data(Place(tmp_path), categories=categories, metainfo={'classes': ('ball',)})
    data(Place(tmp_path), metainfo={'classes': ()})
    assert not lines


def test_a_teacher_that_is_smaller(tmp_path, monkeypatch):
    place = Place(tmp_path)
    lines = warned(monkeypatch, 'freekd_mm.runtime.compatibility')
    model(place, teacher={'model': {'type': 'ToyModel', 'width': 2}, 'allow_random': True})
    assert len(lines) == 1
    assert lines[0].endswith('are teacher and student swapped?')
    entry(place)
    assert len(lines) == 1


def test_features_of_a_teacher_with_other_classes(tmp_path, monkeypatch):
    lines = warned(monkeypatch, 'freekd_mm.runtime.compatibility')
    classes(Place(tmp_path), 'backbone')
    assert lines == [
        'the student has 1 classes and the teacher 2, in another order or with other names; both know 1, the student '
        'alone none, the teacher alone cat; only features are compared, so this may be intended'
    ]


def test_other_preprocessing(tmp_path, monkeypatch):
    lines = warned(monkeypatch, 'freekd_mm.runtime.preprocess')
    other = {'type': 'ImgDataPreprocessor', 'mean': [1.0, 2.0, 3.0], 'std': [4.0, 5.0, 6.0]}
    place = Place(tmp_path)
    content = {'type': 'ToyModel', 'width': 8, 'data_preprocessor': other}
    teacher(place, model=content)
    assert 'teacher and student normalise images differently: the teacher gets its own normalisation' in lines


def test_a_prompt_for_the_same_weights_in_another_file(tmp_path, monkeypatch):
    place = Place(tmp_path)
    lines = warned(monkeypatch, 'freekd_mm.runtime.compatibility')
    prompt = place.prompt(sha=sha256(place.teacher))
    loss(place, prompt=prompt)
    assert not lines
    freekd = {'type': 'freekd_mm.FreeKDLoss', 'channels': 8, 'prompt': place.prompt(sha='0' * 64)}
    weights = {'model': {'type': 'ToyModel', 'width': 8}, 'checkpoint': place.teacher, 'allow_mismatch': True}
    model(place, teacher=weights, distill={'test': {'student': 'backbone', 'loss': freekd}})
    assert len(lines) == 1
    assert 'the prompt should be made for the teacher' in lines[0]


def test_levels_of_a_detector(tmp_path):
    """Three levels of the student and four of the teacher: paired by resolution, and said so."""
    built = detector(Place(tmp_path), levels=4)
    assert isinstance(built.distillation, Distillation)
    rows = [row for part in built.distillation.entries.values() for row in part.rows]
    assert ['test', '1 level(s) of the teacher not used', '', '', '', ''] in rows


def test_paths_that_are_not_local_are_left_alone(tmp_path):
    config = tiny_configs.detector(tmp_path)
    dataset = config['train_dataloader']['dataset']
    remote = (
        {'backend_args': {'backend': 'petrel'}},
        {'data_root': 's3://bucket/coco/'},
        {'ann_file': 'https://host/labels.json'},
        {'data_prefix': {'img': 's3://bucket/images/'}},
    )
    for options in remote:
        loader = {**config['train_dataloader'], 'dataset': {**dataset, **options}}
        assert check_data(Config({'default_scope': 'mmdet', 'train_dataloader': loader})) == []
    with pytest.raises(FileNotFoundError, match='ann_file of train_dataloader should be'):
        check_data(Config({'default_scope': 'mmdet', 'train_dataloader': config['train_dataloader']}))
