# DCT-driven attention KD: GFL-R50 (40.2 AP, 1x) from GFL-R101 (44.7 AP, multi-scale 2x), COCO.
_base_ = ['../_base_/pairs/gfl_r50_r101.py']

model = dict(
    distill=dict(
        dctkd=dict(student='backbone', loss=dict(type='freekd_mm.DCTAttentionLoss', loss_weight=1.0)),
    ),
)
