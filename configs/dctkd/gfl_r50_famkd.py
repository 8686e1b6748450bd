# FAM-KD and DCT-driven attention KD on the same features: GFL-R50 from GFL-R101, COCO.
_base_ = ['../famkd/gfl_r50.py']

model = dict(
    distill=dict(
        dctkd=dict(student='neck', loss=dict(type='freekd_mm.DCTAttentionLoss', loss_weight=0.01)),
    ),
)
