# KL of the class scores: GFL-R50 (40.2 AP, 1x) from GFL-R101 (44.7 AP, multi-scale 2x), COCO.
_base_ = ['../_base_/pairs/gfl_r50_r101.py']

model = dict(
    distill=dict(
        kl=dict(
            student='bbox_head[0]',
            loss=dict(type='freekd_mm.LogitKLLoss', num_classes=80, use_sigmoid=True, foreground=True),
        ),
    ),
)
