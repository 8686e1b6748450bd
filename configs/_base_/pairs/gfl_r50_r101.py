# GFL-R50 (40.2 AP, 1x) from GFL-R101 (44.7 AP, multi-scale 2x), COCO.
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py']

model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{_base_.model}},
    inherit=['neck', 'bbox_head'],
    teacher=dict(
        cfg_path='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
    ),
)
