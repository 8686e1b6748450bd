# DCT-driven attention KD: RepPoints-R50 (38.6 AP) from RepPoints-X101-DCN (44.2 AP), COCO.
_base_ = ['../_base_/pairs/reppoints_r50_x101-dcn.py']

model = dict(
    distill=dict(
        dctkd=dict(student='backbone', loss=dict(type='freekd_mm.DCTAttentionLoss', loss_weight=1.0)),
    ),
)
