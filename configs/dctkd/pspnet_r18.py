# DCT-driven attention KD: PSPNet-R18 from PSPNet-R101 (79.76 mIoU), Cityscapes, 512x512, 40k.
_base_ = ['../_base_/pairs/pspnet_r18_r101.py']

model = dict(
    distill=dict(
        dctkd=dict(student='backbone', loss=dict(type='freekd_mm.DCTAttentionLoss', loss_weight=1.0)),
    ),
)
