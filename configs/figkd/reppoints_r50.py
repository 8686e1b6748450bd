# FiGKD on the class scores: RepPoints-R50 (38.6 AP) from RepPoints-X101-DCN (44.2 AP), COCO.
_base_ = ['../_base_/pairs/reppoints_r50_x101-dcn.py']

model = dict(
    distill=dict(
        figkd=dict(
            student='bbox_head[0]',
            loss=dict(type='freekd_mm.FiGKDLoss', num_classes=80, use_sigmoid=True, foreground=True),
        ),
    ),
)
