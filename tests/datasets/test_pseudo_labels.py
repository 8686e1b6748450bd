"""Pseudo labels: those that the model predicts, in a form that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from scenes import DET_METAINFO, SEG_METAINFO

from freekd_mm.datasets.pseudo_labels import PseudoLabels, _write_map, write_pseudo_labels
from freekd_mm.engine.training import run
from freekd_mm.runtime.config import build_model, find_model

ConfigWriter = Callable[..., Path]
CLASSES = DET_METAINFO['classes']


def model_of(config: Path, path: Path, **meta: Any) -> tuple[Config, str]:
    """Returns a config and a checkpoint of random weights."""
    cfg = Config.fromfile(config)
    torch.manual_seed(0)
    model = build_model(*find_model(cfg))
    model.init_weights()
    for head in [module for name, module in model.named_modules() if name.endswith(('retina_cls', 'conv_seg'))]:
        torch.nn.init.normal_(head.weight, std=3.0)  # untrained, but not undecided
    torch.save({'state_dict': model.state_dict(), 'meta': {'dataset_meta': meta}}, path)
    return cfg, str(path)


@pytest.fixture
def boxes(det_config: ConfigWriter, scenes_root: Path, tmp_path: Path) -> PseudoLabels:
    cfg, checkpoint = model_of(det_config(name='teacher'), tmp_path / 'teacher.pth', classes=CLASSES)
    return write_pseudo_labels(cfg, checkpoint, scenes_root / 'train2017', tmp_path / 'new.json', 0.1, workers=0)


def test_boxes_are_those_of_the_package(boxes: PseudoLabels, scenes_root: Path, tmp_path: Path) -> None:
    from mmdet.apis import inference_detector, init_detector

    content = json.loads(boxes.path.read_text())
    files = sorted((scenes_root / 'train2017').iterdir())
    assert [image['file_name'] for image in content['images']] == [file.name for file in files]
    assert [category['name'] for category in content['categories']] == list(CLASSES)
    own = init_detector(str(tmp_path / 'teacher.py'), str(tmp_path / 'teacher.pth'), device='cpu')
    total = 0
    for image, file in zip(content['images'], files):
        expected = inference_detector(own, str(file)).pred_instances
        expected = expected[expected.scores >= 0.1]
        found = [item for item in content['annotations'] if item['image_id'] == image['id']]
        assert [item['category_id'] - 1 for item in found] == expected.labels.tolist()
        corners = torch.tensor([item['bbox'] for item in found]).view(-1, 4)
        corners[:, 2:] += corners[:, :2]
        torch.testing.assert_close(corners, expected.bboxes, atol=1e-3, rtol=0)
        assert (image['height'], image['width']) == cv2.imread(str(file)).shape[:2]
        total += len(found)
    assert total == sum(boxes.counts.values()) > 0
    assert f'{boxes.labelled} of {len(files)} pictures' in str(boxes)


def test_a_detector_trains_on_them(boxes: PseudoLabels, det_config: ConfigWriter) -> None:
    cfg = Config.fromfile(det_config(name='student'))
    cfg.train_dataloader.dataset.update(
        data_root='',
        ann_file=str(boxes.path),
        data_prefix={'img': f'{boxes.root}/'},
        filter_cfg={'filter_empty_gt': True},
    )
    model = run(cfg)
    assert sum(float(weight.abs().sum()) for weight in model.parameters()) < float('inf')


def test_maps_of_a_segmenter(seg_config: ConfigWriter, scenes_root: Path, tmp_path: Path) -> None:
    from mmseg.apis import inference_model, init_model

    cfg, checkpoint = model_of(seg_config(name='teacher'), tmp_path / 'teacher.pth')
    folder = scenes_root / 'leftImg8bit/val'
    done = write_pseudo_labels(cfg, checkpoint, folder, tmp_path / 'maps', score=0.2, workers=0)
    plain = Config.fromfile(tmp_path / 'teacher.py')
    plain.test_pipeline = plain.test_dataloader.dataset.pipeline
    own = init_model(plain, str(tmp_path / 'teacher.pth'), device='cpu')
    files = sorted(folder.rglob('*.png'))
    counts = np.zeros(len(SEG_METAINFO['classes']), int)
    for file in files:
        sample = inference_model(own, str(file))
        expected = sample.pred_sem_seg.data[0].numpy()
        unsure = sample.seg_logits.data.softmax(0).amax(0).numpy() < 0.2
        found = cv2.imread(str(tmp_path / 'maps' / file.relative_to(folder)), cv2.IMREAD_UNCHANGED)
        assert (found == np.where(unsure, 255, expected)).all()
        counts += np.bincount(found[found < 255], minlength=len(counts))
    assert done.counts == {name: count for name, count in zip(SEG_METAINFO['classes'], counts) if count}
    assert done.pictures == len(files)


def test_pictures_that_are_links_stay_as_they_are(seg_config: ConfigWriter, scenes_root: Path, tmp_path: Path) -> None:
    cfg, checkpoint = model_of(seg_config(name='teacher'), tmp_path / 'teacher.pth')
    original = tmp_path / 'originals/x.png'
    original.parent.mkdir()
    original.write_bytes(sorted((scenes_root / 'leftImg8bit/val').rglob('*.png'))[0].read_bytes())
    before = original.read_bytes()
    (tmp_path / 'links').mkdir()
    (tmp_path / 'links/x.png').symlink_to(original)
    write_pseudo_labels(cfg, checkpoint, tmp_path / 'links', tmp_path / 'labels', workers=0)
    assert original.read_bytes() == before
    assert [file.name for file in (tmp_path / 'labels').iterdir()] == ['x.png']
    with pytest.raises(ValueError, match=r'root should be above all pictures, but .*x\.png is not below'):
        write_pseudo_labels(cfg, checkpoint, original.parent, tmp_path / 'other', workers=0, root=tmp_path / 'labels')
    with pytest.raises(FileExistsError, match='the output should not be one of the inputs'):
        write_pseudo_labels(cfg, checkpoint, original.parent, original.parent, workers=0, force=True)
    assert original.read_bytes() == before


def test_masks(tmp_path: Path) -> None:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    from pycocotools import mask as coco

    from freekd_mm.datasets.pseudo_labels import _add

    masks = torch.zeros(2, 8, 10, dtype=torch.bool)
    masks[0, 2:5, 3:7] = True
    sample = DetDataSample(metainfo={'ori_shape': (8, 10)})
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[3.0, 2, 7, 5], [0, 0, 1, 1]]),
        scores=torch.tensor([0.9, 0.1]),
        labels=torch.tensor([1, 0]),
        masks=masks,
    )
    content: dict = {'images': [], 'annotations': []}
    assert _add(content, Path('x.png'), sample, 0.5) == {1: 1}
    (found,) = content['annotations']
    assert (coco.decode(found['segmentation']) == masks[0].numpy()).all()
    assert (found['area'], found['category_id'], found['bbox']) == (12, 2, [3, 2, 4, 3])


def test_classes_in_capitals_or_of_the_data_set(det_config: ConfigWriter, scenes_root: Path, tmp_path: Path) -> None:
    from mmdet.datasets import CocoDataset

    cfg, old = model_of(det_config(name='teacher'), tmp_path / 'old.pth', CLASSES=CLASSES)
    _, none = model_of(det_config(name='teacher'), tmp_path / 'none.pth')
    del cfg.test_dataloader.dataset['metainfo']

    def classes(checkpoint: str) -> list[str]:
        out = Path(checkpoint).with_suffix('.json')
        write_pseudo_labels(cfg, checkpoint, scenes_root / 'val2017', out, 0.1, workers=0)
        return [category['name'] for category in json.loads(out.read_text())['categories']]

    assert classes(old) == list(CLASSES)
    assert classes(none) == list(CocoDataset.METAINFO['classes'])


def test_wrong_use(det_config: ConfigWriter, scenes_root: Path, tmp_path: Path) -> None:
    cfg, checkpoint = model_of(det_config(name='teacher'), tmp_path / 'teacher.pth')
    arguments = cfg, checkpoint, scenes_root / 'val2017'
    with pytest.raises(ValueError, match=r"-o should be a file like pseudo.json for RetinaNet, but got '.*maps'"):
        write_pseudo_labels(*arguments, tmp_path / 'maps')
    with pytest.raises(ValueError, match='score should be at most 1, but got 50'):
        write_pseudo_labels(*arguments, tmp_path / 'new.json', 50)
    for device in ('foo', 'cuda:99'):
        with pytest.raises(ValueError, match=f"device should be one that is here, as cpu.*, but got '{device}'"):
            write_pseudo_labels(*arguments, tmp_path / 'new.json', device=device)
    (tmp_path / 'mine.json').write_text('{}')
    with pytest.raises(FileExistsError, match=r'mine.json'):
        write_pseudo_labels(*arguments, tmp_path / 'mine.json')
    assert (tmp_path / 'mine.json').read_text() == '{}'


def sample_of(scores: torch.Tensor, labels: torch.Tensor) -> Any:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample()
    sample.set_data({'seg_logits': PixelData(data=scores), 'pred_sem_seg': PixelData(data=labels[None])})
    return sample


@pytest.mark.parametrize('head', ['one channel', 'probabilities', 'logits'])
def test_how_sure_a_segmenter_is(head: str, tmp_path: Path) -> None:
    """A head of one channel has had its sigmoid, and one that classifies masks gives probabilities."""
    sure = torch.tensor([[0.99, 0.7]])
    scores = {
        'one channel': torch.stack([1 - sure]),
        'probabilities': torch.stack([sure, (1 - sure) / 2, (1 - sure) / 2]),
        'logits': torch.stack([sure.log(), ((1 - sure) / 2).log(), ((1 - sure) / 2).log()]),
    }[head]
    sample = sample_of(scores, torch.zeros(1, 2, dtype=torch.long))
    assert _write_map(tmp_path / 'x.png', sample, 0.9, False) == {0: 1}
    assert cv2.imread(str(tmp_path / 'x.png'), cv2.IMREAD_UNCHANGED).tolist() == [[0, 255]]
    assert _write_map(tmp_path / 'x.png', sample, 0.6, False) == {0: 2}


def test_maps_for_data_sets_whose_first_class_is_one(tmp_path: Path) -> None:
    sample = sample_of(torch.eye(3)[:, None] * 9 - 1, torch.tensor([[0, 1, 2]]))
    sample.seg_logits.data[:, 0, 2] = -1.0
    assert _write_map(tmp_path / 'x.png', sample, 0.9, True) == {0: 1, 1: 1}
    assert cv2.imread(str(tmp_path / 'x.png'), cv2.IMREAD_UNCHANGED).tolist() == [[1, 2, 255]]


def test_the_data_set_says_whether_the_first_class_is_one(
    seg_config: ConfigWriter, scenes_root: Path, tmp_path: Path
) -> None:
    classes = SEG_METAINFO['classes']
    folder = scenes_root / 'leftImg8bit/val'
    found = {}
    for zero in (False, True):
        meta = {'classes': classes, 'reduce_zero_label': zero}
        cfg, checkpoint = model_of(seg_config(name='teacher'), tmp_path / f'{zero}.pth', **meta)
        write_pseudo_labels(cfg, checkpoint, folder, tmp_path / str(zero), score=0.0, workers=0)
        found[zero] = [cv2.imread(str(file), -1) for file in sorted((tmp_path / str(zero)).rglob('*.png'))]
    assert all((one == zero + 1).all() for one, zero in zip(found[True], found[False]))


def test_pictures_with_one_label_map(seg_config: ConfigWriter, scenes_root: Path, tmp_path: Path) -> None:
    cfg, checkpoint = model_of(seg_config(name='teacher'), tmp_path / 'teacher.pth')
    picture = sorted((scenes_root / 'leftImg8bit/val').rglob('*.png'))[0].read_bytes()
    (tmp_path / 'two').mkdir()
    for name in ('a.jpg', 'a.png'):
        (tmp_path / 'two' / name).write_bytes(picture)
    with pytest.raises(ValueError, match=r'each picture should have a label map of its own, but .*a\.png is of two'):
        write_pseudo_labels(cfg, checkpoint, tmp_path / 'two', tmp_path / 'labels', workers=0)
