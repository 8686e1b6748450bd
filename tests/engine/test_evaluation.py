"""tools/test.py: its options mean what they mean in MMDetection's and MMSegmentation's own scripts."""

from __future__ import annotations

import copy
import json
import pickle

import cv2
import numpy as np
import pytest
from distill_cases import save_weights
from mmengine.config import Config

from freekd_mm.engine.evaluation import evaluate

VAL = 4


@pytest.fixture
def detector(det_config, tmp_path):
    cfg = Config.fromfile(det_config())
    return cfg, str(save_weights(cfg.model.to_dict(), tmp_path / 'detector.pth'))


@pytest.fixture
def segmenter(seg_config, tmp_path):
    cfg = Config.fromfile(seg_config())
    return cfg, str(save_weights(cfg.model.to_dict(), tmp_path / 'segmenter.pth', 'mmseg'))


def test_out_keeps_the_predictions_of_a_detector(detector, tmp_path):
    cfg, checkpoint = detector
    metrics = evaluate(cfg, checkpoint, out=str(tmp_path / 'all.pkl'), result=str(tmp_path / 'metrics.json'))
    predictions = pickle.loads((tmp_path / 'all.pkl').read_bytes())
    assert len(predictions) == VAL
    assert all(len(one['pred_instances']['bboxes']) == len(one['pred_instances']['scores']) for one in predictions)
    assert metrics.items() <= json.loads((tmp_path / 'metrics.json').read_text()).items()
    assert 'coco/bbox_mAP' in metrics


def test_out_keeps_the_label_maps_of_a_segmenter(segmenter, tmp_path):
    """As pictures in a folder, or as logits and labels in one file."""
    cfg, checkpoint = segmenter
    metrics = evaluate(copy.deepcopy(cfg), checkpoint, out=str(tmp_path / 'maps'))
    cfg.experiment_name = 'second'
    assert evaluate(cfg, checkpoint, out=str(tmp_path / 'all.pkl')) == metrics
    maps = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((tmp_path / 'maps').iterdir())]
    predictions = pickle.loads((tmp_path / 'all.pkl').read_bytes())
    assert len(maps) == len(predictions) == VAL
    labels = [one['pred_sem_seg']['data'][0].numpy() for one in sorted(predictions, key=lambda one: one['img_path'])]
    assert all(np.array_equal(drawn, label) for drawn, label in zip(maps, labels))


def test_out_of_a_detector_is_a_pickle(detector):
    cfg, checkpoint = detector
    with pytest.raises(ValueError, match=r'--out should be a file like predictions.pkl.*--result metrics.json'):
        evaluate(cfg, checkpoint, out='metrics.json')


@pytest.mark.parametrize('kind', ['detector', 'segmenter'])
def test_show_dir(kind, request, tmp_path):
    cfg, checkpoint = request.getfixturevalue(kind)
    drawing = {'detector': 'DetVisualizationHook', 'segmenter': 'SegVisualizationHook'}[kind]
    cfg.default_hooks = {'visualization': {'type': drawing, 'interval': 1}}
    cfg.visualizer = {'type': 'DetLocalVisualizer' if kind == 'detector' else 'SegLocalVisualizer', 'name': 'shown'}
    cfg.visualizer['vis_backends'] = [{'type': 'LocalVisBackend'}]
    evaluate(cfg, checkpoint, show_dir=str(tmp_path / 'pictures'))
    assert len(list((tmp_path / 'pictures').rglob('*.*g'))) == VAL


def test_pictures_need_their_hook(detector, tmp_path):
    cfg, checkpoint = detector
    cfg.default_hooks.pop('visualization', None)
    with pytest.raises(ValueError, match=r'--show-dir needs default_hooks.visualization in the config'):
        evaluate(cfg, checkpoint, show_dir=str(tmp_path))
