"""A config of each kind of model, end to end on the generated scenes: train, resume, test, export.

The models are the packages' own with fewer layers; taps, channels and inherited modules stay as shipped.
"""

from __future__ import annotations

import copy
import importlib.util
import uuid
from pathlib import Path

import pytest
import tiny_configs
from leftovers import clear_leftovers
from mmengine.config import Config, ConfigDict
from narrow_models import fewer_layers
from scenes import CLASSES, THINGS

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.engine.evaluation import evaluate
from freekd_mm.engine.training import run
from freekd_mm.runtime.config import find_model, load_config, without_pretrained
from freekd_mm.runtime.export import export_student

CONFIGS = Path(__file__).parents[2] / 'configs'
# The metric that the evaluation of each gives.
RECIPES = {
    'rtmdet_s_l': 'coco/bbox_mAP',
    'yolox_s_l': 'coco/bbox_mAP',
    'mask-rcnn_r50_r101': 'coco/segm_mAP',
    'condinst_r50_cascade-mask-x101': 'coco/segm_mAP',
    'solov2_r50_r101-dcn': 'coco/segm_mAP',
    'panoptic-fpn_r50_r101': 'coco_panoptic/PQ',
    'mask2former_r50_swin-s_panoptic': 'coco_panoptic/PQ',
    'deformable-detr_r50_refine-twostage': 'coco/bbox_mAP',
    'mask2former_r50_swin-s': 'mIoU',
    'dino_r50_swin-l': 'coco/bbox_mAP',
    'segformer_b0_b5': 'mIoU',
}


def shrink(cfg: Config, kind: str, root: Path, folder: Path) -> Config:
    """Puts the scenes, three iterations and smaller models in place of the data, the schedule and the models."""
    classes = {'mIoU': len(CLASSES), 'coco_panoptic/PQ': len(CLASSES)}.get(kind, len(THINGS))
    teacher, _ = find_model(load_config(cfg.model.teacher.cfg_path))
    models = [
        fewer_layers(ConfigDict(without_pretrained(model)), classes) for model in (cfg.model.architecture, teacher)
    ]
    for model in models:
        if kind == 'mIoU':
            model.test_cfg = {'mode': 'whole'}
        elif 'semantic_head' in model:  # things have heads of their own
            fewer_layers(model.rpn_head, 1)
            fewer_layers(model.roi_head, len(THINGS))
    cfg.model.architecture = models[0]
    cfg.model.teacher = dict(model={**models[1], '_scope_': cfg.default_scope}, allow_random=True)
    tiny = tiny_configs.segmenter(root) if kind == 'mIoU' else tiny_configs.detector(root)
    for split in ('train', 'val'):
        tiny[f'{split}_dataloader']['batch_size'] = {'train': 2, 'val': 1}[split]
        if kind not in ('mIoU', 'coco/bbox_mAP'):
            add_masks(tiny[f'{split}_dataloader']['dataset'], kind, split, folder)
    evaluator = {**tiny['val_evaluator'], **({'metric': 'segm'} if kind == 'coco/segm_mAP' else {})}
    cfg.merge_from_dict(
        {
            'train_cfg': None,
            'val_dataloader': None,
            'val_evaluator': None,
            'val_cfg': None,
            'custom_hooks': [],
            'param_scheduler': [],
            'load_from': None,
            'randomness': {'seed': 0},
            'work_dir': str(folder / 'work'),
            'experiment_name': uuid.uuid4().hex,
        }
    )
    cfg.train_dataloader, cfg.test_dataloader = tiny['train_dataloader'], tiny['val_dataloader']
    cfg.train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': 2}
    cfg.test_cfg, cfg.test_evaluator = {'type': 'TestLoop'}, evaluator
    cfg.default_hooks.checkpoint = {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 1}
    return cfg


def add_masks(dataset: dict, kind: str, split: str, folder: Path) -> None:
    """Loads instance masks, and for panoptic models the label maps of the same scenes."""
    annotations = dataset['pipeline'][1]
    annotations['with_mask'] = True
    if kind != 'coco_panoptic/PQ':
        return
    root = Path(dataset['data_root'])
    maps = folder / f'maps_{split}'
    maps.mkdir()
    pictures = sorted((root / f'{split}2017').glob('*.png'))
    labels = sorted((root / 'gtFine' / split).rglob('*labelTrainIds.png'))
    for picture, label in zip(pictures, labels):
        (maps / picture.name).write_bytes(label.read_bytes())
    assert len(pictures) == len(labels)
    dataset['data_prefix'] = {**dataset['data_prefix'], 'seg': str(maps)}
    annotations['with_seg'] = True


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_trains_resumes_tests_and_exports(name: str, scenes_root: Path, tmp_path: Path) -> None:
    kind = RECIPES[name]
    cfg = shrink(Config.fromfile(CONFIGS / f'wavelet/{name}.py'), kind, scenes_root, tmp_path)
    work = Path(cfg.work_dir)
    last, first = work / 'iter_2.pth', work / 'iter_1.pth'
    once = copy.deepcopy(cfg)
    once.train_cfg.max_iters = 1
    run(once)
    clear_leftovers()
    model = run(copy.deepcopy(cfg), resume=str(first))
    resumed = load_checkpoint_file(last)
    assert resumed['meta']['iter'] == 2
    assert resumed['state_dict'].keys() == load_checkpoint_file(first)['state_dict'].keys()
    assert model.distillation.steps == 2
    assert not any('teacher' in key for key in resumed['state_dict'])
    result = export_student(cfg, last, tmp_path / 'student.pth', images=1)
    assert result.difference == 0
    if kind == 'coco_panoptic/PQ' and importlib.util.find_spec('panopticapi') is None:
        pytest.skip('trained, resumed and exported; the evaluation needs panopticapi, which is not on PyPI')
    clear_leftovers()
    assert kind in evaluate(cfg, str(tmp_path / 'student.pth'))
