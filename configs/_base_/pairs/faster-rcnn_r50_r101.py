# Faster R-CNN-R50 (38.4 AP) from Faster R-CNN-R101 (39.8 AP), COCO.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py']

model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{_base_.model}},
    inherit=['neck', 'rpn_head', 'roi_head'],
    teacher=dict(
        cfg_path='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth',
    ),
)
