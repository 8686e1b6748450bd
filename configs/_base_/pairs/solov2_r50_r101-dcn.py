# SOLOv2-R50 (34.8 mask AP) from SOLOv2-R101-DCN (41.2 mask AP), COCO.
_base_ = ['mmdet::solov2/solov2_r50_fpn_1x_coco.py']

model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{_base_.model}},
    inherit=['neck'],
    teacher=dict(
        cfg_path='mmdet::solov2/solov2_r101-dcn_fpn_ms-3x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/solov2/solov2_r101_dcn_fpn_3x_coco/solov2_r101_dcn_fpn_3x_coco_20220513_214734-16c966cb.pth',
    ),
)
