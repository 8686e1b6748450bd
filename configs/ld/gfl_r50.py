# Localisation distillation: GFL-R50 (40.2 AP, 1x) from GFL-R101 (44.7 AP, multi-scale 2x), COCO.
_base_ = ['../_base_/pairs/gfl_r50_r101.py']

model = dict(
    distill=dict(
        ld=dict(
            student=['bbox_head[0]', 'bbox_head[1]'],
            teacher=['bbox_head[0]', 'bbox_head[1]'],
            loss=dict(type='freekd_mm.LDLoss', temperature=10.0, loss_weight=1.0),
        ),
    ),
)
