# CrossKD: RetinaNet-R50 (37.4 AP) from RetinaNet-R101 (38.9 AP), COCO.
_base_ = ['../_base_/pairs/retinanet_r50_r101.py']

model = dict(
    distill=dict(
        crosskd=dict(
            student=['bbox_head.cls_convs.2', 'bbox_head.reg_convs.2'],
            teacher=['bbox_head[0]', 'bbox_head[1]'],
            through=dict(start=3),
            loss=dict(type='freekd_mm.CrossKDLoss', boxes='deltas'),
        ),
    ),
)
