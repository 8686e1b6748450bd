# RetinaNet-R50 (37.4 AP) from RetinaNet-X101-64x4d (41.0 AP), COCO.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_2x_coco.py']

model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{_base_.model}},
    inherit=['neck', 'bbox_head'],
    teacher=dict(
        cfg_path='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_1x_coco/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth',
    ),
)
