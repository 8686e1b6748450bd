# KL of the pixels' logits: PSPNet-R18 from PSPNet-R101 (79.76 mIoU), Cityscapes, 512x512, 40k.
_base_ = ['../_base_/pairs/pspnet_r18_r101.py']

model = dict(
    distill=dict(
        kl=dict(student='decode_head', loss=dict(type='freekd_mm.LogitKLLoss', num_classes=19)),
    ),
)
