"""What a training looks at before its first step: wrappers by class, classes, data without labels."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tiny_configs
from distill_cases import L2, distilled
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn
from toy_runs import Stop, toy_config

from freekd_mm.engine.checkpoint_hook import ResumePoint
from freekd_mm.engine.preflight import check_data
from freekd_mm.engine.training import check_rates, run


@pytest.mark.parametrize('kind', [OptimWrapper, 'OptimWrapper', 'mmengine.OptimWrapper', None])
def test_amp_takes_wrappers_by_name_and_by_class(kind, tmp_path, monkeypatch):
    """Pure Python configs name classes."""

    def built(cfg):
        wrappers.append(cfg.optim_wrapper)
        raise Stop

    wrappers = []
    monkeypatch.setattr(Runner, 'from_cfg', built)
    config = toy_config(tmp_path)
    config['optim_wrapper']['type'] = kind
    if kind is None:
        del config['optim_wrapper']['type']
    with pytest.raises(Stop):
        run(Config(config), amp=True)
    assert (wrappers[0].type, wrappers[0].loss_scale) == ('AmpOptimWrapper', 'dynamic')
    config['optim_wrapper']['type'] = 'ApexOptimWrapper'
    with pytest.raises(ValueError, match='--amp should be used with an OptimWrapper, but the config has ApexOptimWrap'):
        run(Config(config), amp=True)


def test_strategies_that_write_folders_are_refused(tmp_path):
    config = Config(toy_config(tmp_path, runner_type='FlexibleRunner', strategy={'type': 'mmengine.DeepSpeedStrategy'}))
    with pytest.raises(ValueError, match=r'strategy should write checkpoints as files, .* but got mmengine\.DeepSpeed'):
        run(config)
    assert not (tmp_path / 'work').exists()


def test_amp_is_for_stage_1_too(tmp_path, monkeypatch):
    def ensure(stage1, cfg, amp):
        found.append((stage1, amp))
        raise Stop

    found = []
    monkeypatch.setattr('freekd_mm.engine.training.ensure_prompt', ensure)
    stage1 = {'cfg_path': 'prompt.py', 'file': 'prompt.pth'}
    with pytest.raises(Stop):
        run(Config(toy_config(tmp_path, frequency_prompt=stage1)), amp=True)
    assert found == [(stage1, True)]


@pytest.mark.parametrize('exact', [True, False])
def test_classes_are_compared_also_without_exact_resumes(exact, scenes_root, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr('freekd_mm.engine.preflight.check_classes', lambda *found: seen.append(found[0]))
    config = tiny_configs.detector(scenes_root)
    classes = config['train_dataloader']['dataset'].pop('metainfo')['classes']
    teacher = {'model': tiny_configs.detector(scenes_root, width=16)['model'], 'allow_random': True}
    config = distilled(config, teacher, {'mse': {'student': 'backbone', 'loss': L2}})
    config['train_cfg'] = {'type': 'EpochBasedTrainLoop', 'max_epochs': 1, 'val_interval': 5}
    config['reliability'] = {'exact_resume': exact}
    # The class of the data set names them.
    named = type('NamedDataset', (DATASETS.get('mmdet.CocoDataset'),), {'METAINFO': {'classes': classes}})
    monkeypatch.setitem(DATASETS._module_dict, 'NamedDataset', named)
    config['train_dataloader']['dataset']['type'] = 'mmengine.NamedDataset'
    cfg = Config.fromfile(tiny_configs.write(tmp_path / 'classes.py', config))
    cfg.work_dir = str(tmp_path / 'work')
    run(cfg)
    assert seen == [tuple(classes)]


def test_a_rate_for_a_part_of_the_student_that_a_connector_gets_by_its_name(monkeypatch):
    said = []
    monkeypatch.setattr('freekd_mm.engine.training.warn', said.append)
    model = nn.Module()
    model.distillation = nn.Module()
    connectors = {'backbone_kd': nn.Linear(1, 1), 'backbone_mse': nn.Identity(), 'kd': nn.Linear(1, 1)}
    model.distillation.entries = nn.ModuleDict(connectors)
    for keys in ({'backbone': {'lr_mult': 0.1}}, {'backbone': {'lr_mult': 0.1}, 'distillation': {'lr_mult': 1}}, {}):
        check_rates(SimpleNamespace(model=model, cfg={'optim_wrapper': {'paramwise_cfg': {'custom_keys': keys}}}))
    assert len(said) == 1
    assert said[0].startswith("distill 'backbone_kd' trains its connector as 'backbone' in custom_keys says")


def coco(folder: Path, name: str, annotations: int) -> dict:
    """A COCO file of one picture with so many boxes, and the data set that reads it."""
    dataset = tiny_configs.detector(folder)['train_dataloader']['dataset']
    box = {'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 40, 40], 'area': 1600, 'iscrowd': 0}
    content = {
        'images': [{'id': 1, 'file_name': 'a.png', 'width': 64, 'height': 64}],
        'annotations': [{**box, 'id': index} for index in range(1, annotations + 1)],
        'categories': [{'id': id, 'name': label} for id, label in enumerate(dataset['metainfo']['classes'], 1)],
    }
    (folder / f'{name}.json').write_text(json.dumps(content))
    cv2.imwrite(str(folder / 'a.png'), np.zeros((64, 64, 3), np.uint8))
    options = {'filter_cfg': None, 'data_prefix': {'img': ''}, 'data_root': str(folder)}
    return {**dataset, **options, 'ann_file': f'{name}.json'}


def test_one_part_of_the_data_may_be_without_annotations(tmp_path, monkeypatch):
    """Pictures of background, or those of a semi-supervised detector."""
    said = []
    monkeypatch.setattr('freekd_mm.engine.preflight.warn', said.append)
    bare, labelled = coco(tmp_path, 'bare', 0), coco(tmp_path, 'labelled', 2)

    def check(*parts):
        dataset = {'type': 'ConcatDataset', 'datasets': list(parts)}
        return check_data(Config({'default_scope': 'mmdet', 'train_dataloader': {'dataset': dataset}}))

    assert [split for split, _ in check(labelled, bare)] == ['train', 'train']
    assert len(said) == 1
    assert "bare.json' has none for its classes" in said[0]
    for parts in ((bare,), (bare, bare)):
        with pytest.raises(ValueError, match=r'train_dataloader should have images with annotations, but .*bare\.json'):
            check(*parts)


def test_label_maps_in_colours_are_named(scenes_root, tmp_path):
    config = tiny_configs.segmenter(scenes_root)['train_dataloader']
    for file in scenes_root.joinpath('gtFine/train').rglob('*labelTrainIds.png'):
        target = tmp_path / file.relative_to(scenes_root)
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), np.zeros((*cv2.imread(str(file)).shape[:2], 3), np.uint8))
    (tmp_path / 'leftImg8bit').symlink_to(scenes_root / 'leftImg8bit')
    config['dataset']['data_root'] = str(tmp_path)
    load = next(step for step in config['dataset']['pipeline'] if step['type'] == 'LoadAnnotations')
    load['imdecode_backend'] = 'cv2'
    with pytest.raises(
        ValueError, match=r'label maps should hold one number for each pixel, but .* shape \(\d+, \d+, 3'
    ):
        check_data(Config({'default_scope': 'mmseg', 'train_dataloader': config}))


def test_label_maps_of_a_data_set_of_mmdet(tmp_path):
    """Its data sets for segmentation have no ignore_index."""
    for name, size, value in (('img/a.jpg', (8, 8, 3), 0), ('ann/a.png', (8, 8), 1)):
        (tmp_path / name).parent.mkdir()
        cv2.imwrite(str(tmp_path / name), np.full(size, value, np.uint8))
    dataset = {
        'type': 'ADE20KSegDataset',
        'data_root': str(tmp_path),
        'data_prefix': {'img_path': 'img', 'seg_map_path': 'ann'},
        'pipeline': [{'type': 'LoadAnnotations', 'with_bbox': False, 'with_seg': True}],
    }
    ((_, text),) = check_data(Config({'default_scope': 'mmdet', 'train_dataloader': {'dataset': dataset}}))
    assert text.startswith('1 images of 8x8; pixels per class in 1 of them: ')


def test_batches_that_are_done_count_for_another_number_of_processes(monkeypatch):
    place = {'batches': 800, 'evaluated': False, 'processes': 1}
    content = {'meta': {'epoch': 2, 'iter': 2800, 'seed': 3, 'freekd_mm': place}}
    assert ResumePoint.of(content).batches == 800
    monkeypatch.setattr('freekd_mm.engine.checkpoint_hook.get_world_size', lambda: 4)
    assert ResumePoint.of(content).batches == 200
    place['processes'] = 4
    assert ResumePoint.of(content).batches == 800
