# Panoptic FPN-R50 (40.2 PQ) from Panoptic FPN-R101 (42.2 PQ), COCO.
_base_ = ['mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py']

model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{_base_.model}},
    inherit=['neck', 'rpn_head', 'roi_head', 'semantic_head'],
    teacher=dict(
        cfg_path='mmdet::panoptic_fpn/panoptic-fpn_r101_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/panoptic_fpn/panoptic_fpn_r101_fpn_1x_coco/panoptic_fpn_r101_fpn_1x_coco_20210820_193950-ab9157a2.pth',
    ),
)
