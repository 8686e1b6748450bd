# DCT-driven attention KD: RetinaNet-R50 (37.4 AP) from RetinaNet-X101-64x4d (41.0 AP), COCO.
_base_ = ['../_base_/pairs/retinanet_r50_x101.py']

model = dict(
    distill=dict(
        dctkd=dict(student='backbone', loss=dict(type='freekd_mm.DCTAttentionLoss', loss_weight=1.0)),
    ),
)
