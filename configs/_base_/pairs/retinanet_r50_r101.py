# RetinaNet-R50 (37.4 AP) from RetinaNet-R101 (38.9 AP), COCO.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_2x_coco.py']

model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{_base_.model}},
    inherit=['neck', 'bbox_head'],
    teacher=dict(
        cfg_path='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth',
    ),
)
