# FAM-KD and DCT-driven attention KD beside each other: GFL-R50 from GFL-R101, COCO.
_base_ = ['../famkd/gfl_r50.py']

model = dict(
    distill=dict(
        dctkd=dict(student='backbone', loss=dict(type='freekd_mm.DCTAttentionLoss', loss_weight=1.0)),
    ),
)
