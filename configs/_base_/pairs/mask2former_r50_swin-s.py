# Mask2Former-R50 (80.44 mIoU) from Mask2Former-Swin-S (82.57 mIoU), Cityscapes.
_base_ = ['mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py']

model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{_base_.model}},
    inherit=['decode_head'],
    teacher=dict(
        cfg_path='mmseg::mask2former/mask2former_swin-s_8xb2-90k_cityscapes-512x1024.py',
        checkpoint='https://download.openmmlab.com/mmsegmentation/v0.5/mask2former/mask2former_swin-s_8xb2-90k_cityscapes-512x1024/mask2former_swin-s_8xb2-90k_cityscapes-512x1024_20221127_143802-9ab177f6.pth',
    ),
)
