# FiGKD on the class scores: RetinaNet-R50 (37.4 AP) from RetinaNet-X101-64x4d (41.0 AP), COCO.
_base_ = ['../_base_/pairs/retinanet_r50_x101.py']

model = dict(
    distill=dict(
        figkd=dict(
            student='bbox_head[0]',
            loss=dict(type='freekd_mm.FiGKDLoss', num_classes=80, use_sigmoid=True, foreground=True),
        ),
    ),
)
