"""mPC and rPC over a model's test data, with a checkpoint of a two-iteration run."""

from __future__ import annotations

import copy
import json

import pytest
from leftovers import clear_leftovers
from mmengine.config import Config
from mmengine.runner import Runner

from freekd_mm.robustness import protocol

pytest.importorskip('mmdet')


@pytest.fixture
def trained(det_config):
    cfg = Config.fromfile(det_config('model'))
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    runner.save_checkpoint(cfg.work_dir, 'start.pth', {}, save_optimizer=False)
    clear_leftovers()  # the evaluations find a visualizer of their own, in a folder that goes away
    return Config.fromfile(cfg.filename), f'{cfg.work_dir}/start.pth'


def test_mpc_is_the_mean_over_corruptions_and_a_second_call_goes_on(trained, tmp_path, monkeypatch):
    values = {'snow1': 0.3, 'snow5': 0.1, 'fog1': 0.4, 'fog5': 0.4}
    seen = []

    def evaluate(cfg, checkpoint, metric):
        step = cfg.test_dataloader.dataset.pipeline[1]
        name = f'{step["corruption"]}{step["severity"]}' if step['type'] == 'freekd_mm.Corrupt' else 'clean'
        seen.append(name)
        return values.get(name, 0.5)

    monkeypatch.setattr(protocol, '_evaluate', evaluate)
    out = tmp_path / 'out.json'
    results = protocol.measure(*trained, 'acc', ['snow', 'fog'], [1, 5], out)
    assert seen == ['clean', 'snow1', 'snow5', 'fog1', 'fog5']
    assert results['mPC'] == pytest.approx((0.2 + 0.4) / 2)
    assert results['rPC'] == pytest.approx(0.3 / 0.5)
    assert json.loads(out.read_text()) == results
    del results['corrupted']['fog']['5']
    out.write_text(json.dumps(results))
    protocol.measure(*trained, 'acc', ['snow', 'fog'], [1, 5], out)
    assert seen[5:] == ['fog5']
    lines = protocol.compare({'a': results, 'b': results}, 100).splitlines()
    assert lines[1].split() == ['clean', '50.0', '50.0']
    assert lines[-2].split() == ['mPC', '30.0', '30.0']
    fewer = protocol.measure(*trained, 'acc', ['snow'], [1], out)
    assert fewer['mPC'] == pytest.approx(0.3)
    assert fewer['corrupted'] == {**results['corrupted'], 'fog': {'1': 0.4, '5': 0.4}}, 'nothing is lost'
    with pytest.raises(ValueError, match='is of another run'):
        protocol.measure(*trained, 'other', ['snow'], [1], out)
    with open(trained[1], 'ab') as file:  # trained once more
        file.write(b' ')
    with pytest.raises(ValueError, match='is of another run'):
        protocol.measure(*trained, 'acc', ['snow'], [1], out)


def test_a_detector_is_evaluated_on_corrupted_pictures(trained):
    results = protocol.measure(*trained, 'coco/bbox_mAP', ['contrast'], [5])
    assert 0 <= results['corrupted']['contrast']['5'] <= 1
    with pytest.raises(ValueError, match=r"metric should be one of .*'coco/bbox_mAP'"):
        protocol.measure(*trained, 'coco/bbox_map', [], [])


def test_all_parts_of_a_test_set_are_corrupted(trained):
    cfg, _ = trained
    part = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[part, dict(dataset=copy.deepcopy(part))])
    corrupted = protocol.corrupted_config(cfg, 'snow', 1).test_dataloader.dataset.datasets
    for pipeline in corrupted[0].pipeline, corrupted[1].dataset.pipeline:
        assert [step['type'] for step in pipeline].count('freekd_mm.Corrupt') == 1
        assert pipeline[1]['type'] == 'freekd_mm.Corrupt'


def test_steps_that_are_classes_are_found(trained):
    """As pure Python configs have them."""
    from mmcv.transforms import LoadImageFromFile

    cfg, _ = trained
    cfg.test_dataloader.dataset.pipeline[0] = dict(type=LoadImageFromFile)
    pipeline = protocol.corrupted_config(cfg, 'snow', 1).test_dataloader.dataset.pipeline
    assert [step['type'] for step in pipeline[:2]] == [LoadImageFromFile, 'freekd_mm.Corrupt']


def test_a_pipeline_without_loading_is_refused(trained):
    cfg, _ = trained
    cfg.test_dataloader.dataset.pipeline = [dict(type='Resize', scale=(8, 8))]
    with pytest.raises(ValueError, match=r"should have a 'LoadImageFromFile'.* but has Resize"):
        protocol.corrupted_config(cfg, 'snow', 1)
