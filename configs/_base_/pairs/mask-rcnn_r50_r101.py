# Mask R-CNN-R50 (34.7 mask AP) from Mask R-CNN-R101 (36.1 mask AP), COCO.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py']

model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{_base_.model}},
    inherit=['neck', 'rpn_head', 'roi_head'],
    teacher=dict(
        cfg_path='mmdet::mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r101_fpn_1x_coco/mask_rcnn_r101_fpn_1x_coco_20200204-1efe0ed5.pth',
    ),
)
