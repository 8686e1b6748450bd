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
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

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


@HOOKS.register_module()
class PassesHook(Hook):
    """Keeps the hook that draws the predictions, then the batches that go through the backbone."""

    seen: list = []  # noqa: RUF012

    def before_test(self, runner) -> None:
        model = getattr(runner.model, 'module', runner.model)
        self.seen.append(next(hook for hook in runner.hooks if 'Visualization' in type(hook).__name__))
        model.backbone.register_forward_pre_hook(lambda _, args: self.seen.append(args[0]))


@pytest.mark.parametrize('kind', ['detector', 'segmenter'])
def test_show(kind, request, tmp_path, monkeypatch):
    cfg, checkpoint = request.getfixturevalue(kind)
    drawing = {'detector': 'DetVisualizationHook', 'segmenter': 'SegVisualizationHook'}[kind]
    cfg.default_hooks = {'visualization': {'type': drawing}}
    cfg.visualizer = {'type': 'DetLocalVisualizer' if kind == 'detector' else 'SegLocalVisualizer', 'name': 'shown'}
    cfg.visualizer['vis_backends'] = [{'type': 'LocalVisBackend'}]
    cfg.custom_hooks = [{'type': 'PassesHook'}]
    shown = []
    monkeypatch.setattr('mmengine.visualization.Visualizer.show', lambda self, *_, **options: shown.append(options))
    monkeypatch.setattr(PassesHook, 'seen', [])
    if kind == 'segmenter':
        cfg.default_hooks.visualization.interval = 1
    monkeypatch.chdir(tmp_path)  # the folder is relative to the current one
    evaluate(cfg, checkpoint, show=True, show_dir='pictures', wait_time=0.5)
    assert PassesHook.seen[0].show
    assert [options['wait_time'] for options in shown] == [0.5] * VAL
    assert len(list((tmp_path / 'pictures').rglob('*.*g'))) == (VAL if kind == 'detector' else 0)
    # The hook of segmenters either shows or writes.
    PassesHook.seen.clear()
    shown.clear()
    cfg.visualizer.name = cfg.experiment_name = 'written'
    evaluate(cfg, checkpoint, show_dir=str(tmp_path / 'written'))
    assert not PassesHook.seen[0].show
    assert not shown
    assert len(list((tmp_path / 'written').rglob('*.*g'))) == VAL


def test_pictures_need_their_hook(detector, tmp_path):
    cfg, checkpoint = detector
    cfg.default_hooks.pop('visualization', None)
    with pytest.raises(ValueError, match=r'--show and --show-dir need default_hooks.visualization in the config'):
        evaluate(cfg, checkpoint, show_dir=str(tmp_path))


def test_tta_of_a_detector_flips(detector, monkeypatch):
    """Each image is seen as it is and mirrored, with the weights of the checkpoint."""
    cfg, checkpoint = detector
    cfg.default_hooks.visualization = {'type': 'DetVisualizationHook'}
    cfg.custom_hooks = [{'type': 'PassesHook'}]
    monkeypatch.setattr(PassesHook, 'seen', [])
    assert 'coco/bbox_mAP' in evaluate(cfg, checkpoint, tta=True)
    mirrored, plain = PassesHook.seen[1::2], PassesHook.seen[2::2]
    assert sum(map(len, plain)) == VAL
    assert all(one.flip(-1).equal(other) for one, other in zip(plain, mirrored))


def test_tta_of_a_segmenter(segmenter, tmp_path):
    """A pipeline that flips nothing twice predicts as none does; without one there is an error."""
    cfg, checkpoint = segmenter
    with pytest.raises(ValueError, match=r'--tta needs .* in the config, but it has no tta_pipeline'):
        evaluate(copy.deepcopy(cfg), checkpoint, tta=True)
    *steps, pack = cfg.test_dataloader.dataset.pipeline
    still = [[{'type': 'RandomFlip', 'prob': 0.0}] * 2, [pack]]
    cfg.tta_model = {'type': 'SegTTAModel'}
    cfg.tta_pipeline = [*steps, {'type': 'TestTimeAug', 'transforms': still}]
    plain = evaluate(copy.deepcopy(cfg), checkpoint)
    cfg.experiment_name = 'augmented'
    assert evaluate(cfg, checkpoint, tta=True) == plain
