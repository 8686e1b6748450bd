# CrossKD: FCOS-R50 (38.5 AP) from FCOS-R101 (40.8 AP), COCO.
_base_ = ['../_base_/pairs/fcos_r50_r101.py']

model = dict(
    distill=dict(
        crosskd=dict(
            student=['bbox_head.cls_convs.2', 'bbox_head.reg_convs.2'],
            teacher=['bbox_head[0]', 'bbox_head[1]'],
            through=dict(start=3),
            loss=dict(type='freekd_mm.CrossKDLoss', boxes='distances'),
        ),
    ),
)
