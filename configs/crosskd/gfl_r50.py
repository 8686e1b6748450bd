# CrossKD: GFL-R50 (40.2 AP, 1x) from GFL-R101 (44.7 AP, multi-scale 2x), COCO.
_base_ = ['../_base_/pairs/gfl_r50_r101.py']

model = dict(
    distill=dict(
        crosskd=dict(
            student=['bbox_head.cls_convs.2', 'bbox_head.reg_convs.2'],
            teacher=['bbox_head[0]', 'bbox_head[1]'],
            through=dict(start=3),
            loss=dict(type='freekd_mm.CrossKDLoss', boxes='distribution'),
        ),
    ),
)
