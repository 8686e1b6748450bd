"""One step of structurally different families of both packages, with a student narrower than its teacher.

The whole survey, one config of every family, is run by hand: docs/zoo.md has its results.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from narrow_models import fewer_layers, narrower
from scenes import CLASSES

from freekd_mm.runtime.config import find_model, load_config
from tools.zoo_step import distilled_step

# What is compared of the student.
FAMILIES = {
    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py': {'neck': 5},
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': {'neck': 5},
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py': {'neck': 3},
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': {'neck': 3},
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': {'neck': 5},
    'mmdet::solov2/solov2_r50_fpn_1x_coco.py': {'neck': 5},
    'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py': {'neck': 1},
    'mmdet::detr/detr_r50_8xb2-150e_coco.py': {'neck': 1},
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': {'backbone': 4},
    'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py': {'backbone[-1:]': 1, 'decode_head.bottleneck': 1},
    'mmseg::ocrnet/ocrnet_hr18s_4xb2-80k_cityscapes-512x1024.py': {'backbone': 4},
    'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py': {
        'backbone': 4,
        'decode_head.fusion_conv': 1,
    },
    'mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py': {
        'backbone[1]': 1,
        'decode_head.head': 1,
    },
    'mmseg::segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py': {'backbone': 1},
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py': {
        'backbone': 4,
        'decode_head.fpn_bottleneck': 1,
    },
}


@pytest.mark.parametrize('name', FAMILIES)
def test_a_narrower_student_takes_a_distilled_step(name: str, tmp_path: Path) -> None:
    if 'ddrnet' in name:
        pytest.importorskip('mmseg', '1.2')
    paths = []
    for role, factor in (('student', 1 / 8), ('teacher', 1 / 4)):
        cfg = load_config(name)
        model, scope = find_model(cfg)
        model = narrower(fewer_layers(model, len(CLASSES)).to_dict(), factor)
        # What is loaded stays, crops and scales go.
        pipeline = [step for step in cfg.get('train_pipeline', []) if 'Annotations' in step['type']]
        paths.append(tmp_path / f'{role}.py')
        Config({'model': model, 'default_scope': scope, 'train_pipeline': pipeline}).dump(paths[-1])
    found = distilled_step(str(paths[0]), str(paths[1]), picture=128)
    taps = [row[2] for row in found['compared'] if row[2]]
    assert {tap: taps.count(tap) for tap in taps} == FAMILIES[name]
    assert all(value > 0 for values in found['gradients'].values() for value in values)
    assert found['exported'] == 0
