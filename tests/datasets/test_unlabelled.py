"""Pictures without labels: which are found, what is loaded, and that broken ones are named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_configs
import torch
from mmengine.registry import DATASETS, DefaultScope

import freekd_mm
from freekd_mm import cli
from freekd_mm.compat.versions import zip_equal
from freekd_mm.datasets.unlabelled import MixedBatchSampler, WithUnlabelled, find_pictures
from freekd_mm.wizard.sources import Style, mixed_source

META = ('img_path', 'ori_shape', 'img_shape')
LOAD = [
    {'type': 'LoadImageFromFile'},
    {'type': 'LoadAnnotations', 'with_bbox': True},
    {'type': 'PackDetInputs', 'meta_keys': META},
]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven files of other sizes in two folders, one of them no picture, and one broken."""
    folder = tmp_path / 'pictures'
    (folder / 'more').mkdir(parents=True)
    for number, name in enumerate(('a.png', 'b.JPG', 'more/c.png', 'more/d.png', 'e.png')):
        size = (20 + number, 30, 3) if number else (20, 30)
        cv2.imwrite(str(folder / name), np.full(size, 10 * number, np.uint8))
    (folder / 'notes.txt').write_text('no picture')
    (folder / 'broken.jpg').write_bytes((folder / 'b.JPG').read_bytes()[:30])
    return folder


@pytest.fixture
def in_mmdet() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def test_what_is_found(pictures: Path, tmp_path: Path) -> None:
    names = ['a.png', 'b.JPG', 'broken.jpg', 'e.png', 'more/c.png', 'more/d.png']
    assert find_pictures(pictures) == [pictures / name for name in names]
    listing = tmp_path / 'list.txt'
    listing.write_text('pictures/e.png\n\npictures/a.png\n')
    assert find_pictures(listing) == [pictures / 'e.png', pictures / 'a.png']
    assert find_pictures([pictures / 'more', listing])[-1] == pictures / 'a.png'
    capitals = tmp_path / 'LIST.TXT'
    capitals.write_text(listing.read_text(encoding='utf-8'), encoding='utf-8-sig')
    assert find_pictures([str(capitals)]) == find_pictures(listing)
    capitals.write_bytes('gr\u00fcn.png'.encode('latin-1'))
    with pytest.raises(FileNotFoundError, match=r'LIST.TXT should list pictures, but 1 are missing, as .*gr.n.png'):
        find_pictures(capitals)
    (tmp_path / 'labels.json').write_text('{}')
    with pytest.raises(ValueError, match=r"labels.json' should hold pictures \(.jpg, .*, but has none"):
        find_pictures(tmp_path / 'labels.json')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r"empty' should hold pictures \(.jpg, .*\), but has none"):
        find_pictures(tmp_path / 'empty')
    for nothing in ([], None):
        with pytest.raises(TypeError, match='a folder of pictures, a text file, or a list of such should be given'):
            find_pictures(nothing)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="a folder of pictures should exist, but got '/nowhere'"):
        find_pictures('/nowhere')
    listing.write_text('pictures/x.png\n')
    with pytest.raises(FileNotFoundError, match=r'should list pictures, but 1 are missing, as .*pictures/x.png'):
        find_pictures(listing)


@pytest.mark.usefixtures('in_mmdet')
def test_broken_files_are_named(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr('freekd_mm.datasets.unlabelled.warn', said.append)
    folder = freekd_mm.ImageFolder(pictures, LOAD)
    assert len(folder) == 6
    for _ in range(2):
        assert folder[2]['data_samples'].img_path == str(pictures / 'e.png')
    assert said == [f'{pictures / "broken.jpg"} cannot be read as a picture and is skipped']
    with pytest.raises(ValueError, match=r'broken\.jpg should be a picture, but cannot be read'):
        freekd_mm.ImageFolder(pictures, LOAD, broken='error')[2]
    for name in ('x.png', 'y.png'):
        shutil.copy(pictures / 'notes.txt', pictures / 'more' / name)
    with pytest.raises(ValueError, match=r'but 2 in a row cannot, from .*x.png to .*y.png'):
        freekd_mm.ImageFolder([pictures / 'more/x.png', pictures / 'more/y.png'], LOAD)[0]
    with pytest.raises(ValueError, match=r"broken of ImageFolder should be one of 'skip', 'error', but got 'skp'"):
        freekd_mm.ImageFolder(pictures, LOAD, broken='skp')


@pytest.mark.usefixtures('in_mmdet')
@pytest.mark.parametrize('workers', [0, 1])
def test_a_tool_says_in_a_line_what_a_loading_process_cannot_read(
    workers: int, pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    batches = torch.utils.data.DataLoader(freekd_mm.ImageFolder(pictures / 'broken.jpg', LOAD), num_workers=workers)
    with pytest.raises(SystemExit):
        cli.run(lambda: next(iter(batches)))
    file = pictures / 'broken.jpg'
    said = f'error: ImageFolder should have pictures that can be read, but 1 in a row cannot, from {file} to {file}\n'
    assert said in capsys.readouterr().err
    faulty = torch.utils.data.DataLoader([1], num_workers=workers, collate_fn=lambda _: {}['no key'])
    with pytest.raises(KeyError):
        cli.run(lambda: next(iter(faulty)))


@pytest.mark.usefixtures('in_mmdet')
def test_a_mistake_in_the_pipeline_is_no_broken_file(pictures: Path) -> None:

    with pytest.raises(AssertionError, match='gt_bboxes'):
        freekd_mm.ImageFolder(pictures, [LOAD[0], {'type': 'MinIoURandomCrop'}, LOAD[2]])[0]


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_steps_of_labelled_pictures(pictures: Path, scope: str) -> None:
    """Crops, flips and filters that look at labels see none."""
    shared = [{'type': 'RandomFlip', 'prob': 0.5}, {'type': 'PhotoMetricDistortion'}]
    steps: dict[str, list[dict[str, Any]]] = {
        'mmdet': [
            {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True},
            {'type': 'RandomCrop', 'crop_size': (16, 16)},
            {'type': 'FilterAnnotations', 'min_gt_bbox_wh': (1, 1)},
            *shared,
            LOAD[-1],
        ],
        'mmseg': [
            {'type': 'LoadAnnotations'},
            {'type': 'RandomResize', 'scale': (40, 40), 'ratio_range': (1.0, 2.0), 'keep_ratio': True},
            {'type': 'RandomCrop', 'crop_size': (16, 16), 'cat_max_ratio': 0.75},
            *shared,
            {'type': 'PackSegInputs'},
        ],
    }
    with DefaultScope.overwrite_default_scope(scope):
        config = {'type': 'freekd_mm.ImageFolder', 'folder': str(pictures), 'pipeline': [LOAD[0], *steps[scope]]}
        folder = DATASETS.build(config)
        samples = [folder[index] for index in range(len(folder))]
    for sample in samples:
        assert sample['inputs'].shape == (3, 16, 16)
        assert sample['data_samples'].unlabelled is True
        if scope == 'mmdet':
            assert len(sample['data_samples'].gt_instances) == 0
        else:
            assert sample['data_samples'].gt_sem_seg.data.unique().tolist() == [255]


class Sampler(torch.utils.data.Sampler):
    """Labelled pictures in order."""

    def __init__(self, dataset: WithUnlabelled, seed: int = 0, epoch: int = 0) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.dataset)))

    def __len__(self) -> int:
        return len(self.dataset)


@pytest.fixture
def mixed(pictures: Path, scenes_root: Path) -> WithUnlabelled:
    dataset = tiny_configs.detector(scenes_root)['train_dataloader']['dataset']
    with DefaultScope.overwrite_default_scope('mmdet'):
        return WithUnlabelled(dataset, {'folder': str(pictures)})


def test_beside_labelled_pictures(mixed: WithUnlabelled) -> None:
    """The labelled data set is there as before; what is behind it has no labels, and the same steps."""
    count = len(mixed)
    assert count == len(mixed.labelled) == len([mixed.get_data_info(index) for index in range(count)])
    assert mixed.metainfo == mixed.labelled.metainfo
    assert 'unlabelled' not in mixed[0]['data_samples'].metainfo
    behind = mixed[count]
    assert behind['data_samples'].unlabelled
    assert max(behind['inputs'].shape) == max(mixed[0]['inputs'].shape) == 64


@pytest.mark.parametrize('ratio', [0.5, 1, 3])
def test_batches(mixed: WithUnlabelled, ratio: float) -> None:
    count = len(mixed)
    sampler = MixedBatchSampler(Sampler(mixed), batch_size=2, ratio=ratio)
    batches = list(sampler)
    kinds = [{index >= count for index in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    labelled = [batch for batch, kind in zip_equal(batches, kinds) if kind == {False}]
    others = [index for batch, kind in zip_equal(batches, kinds) if kind == {True} for index in batch]
    assert labelled == [list(range(start, min(start + 2, count))) for start in range(0, count, 2)]
    assert len(sampler) == len(batches) == len(labelled) + int(len(labelled) * ratio)
    assert kinds[0] == {False}
    # No picture comes again before all have been there.
    assert len(set(others[:6])) == min(6, len(others))
    assert set(others) <= set(range(count, count + 6))
    assert list(MixedBatchSampler(Sampler(mixed), 2, ratio)) == batches
    assert list(MixedBatchSampler(Sampler(mixed, epoch=1), 2, ratio)) != batches
    assert list(MixedBatchSampler(Sampler(mixed, seed=1), 2, ratio)) != batches


def test_wrong_use(mixed: WithUnlabelled, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='ratio of MixedBatchSampler should be greater than 0, but got 0'):
        MixedBatchSampler(Sampler(mixed), 2, 0)
    with pytest.raises(TypeError, match='should have data of WithUnlabelled, but got CocoDataset'):
        MixedBatchSampler(Sampler(mixed.labelled), 2)
    mosaic = {'type': 'MultiImageMixDataset', 'dataset': {}, 'pipeline': [{'type': 'Mosaic'}]}
    with pytest.raises(ValueError, match=r"should have a 'pipeline' of its own, .* begin with a file, but has Mosaic"):
        WithUnlabelled(mosaic, {'folder': str(pictures)})
    base = tiny_configs.write(tmp_path / 'mosaic.py', {'train_dataloader': {'dataset': mosaic}})
    with pytest.raises(ValueError, match=r"should have a 'pipeline' of its own, .* begin with a file, but has Mosaic"):
        mixed_source(Style(str(base), tmp_path / 'kd.py'), pictures)


def test_links_that_lead_back_are_followed_once(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere/f.png').write_bytes((pictures / 'a.png').read_bytes())
    before = find_pictures(pictures)
    for name, target in (('up', pictures), ('more/up', pictures), ('linked', tmp_path / 'elsewhere')):
        (pictures / name).symlink_to(target)
    assert sorted(find_pictures(pictures)) == sorted([*before, pictures / 'linked/f.png'])


def test_steps_that_change_in_training_are_those_of_labelled_pictures(mixed: WithUnlabelled) -> None:
    """mmdet's PipelineSwitchHook sets them on what the loader has."""
    steps = mixed.labelled.pipeline
    assert mixed.pipeline is steps
    mixed.pipeline = lambda _: 'switched'
    assert mixed[0] == 'switched'
    mixed.pipeline = steps
    assert set(mixed[0]) == {'inputs', 'data_samples'}
