# WaveletLoss: Mask2Former-R50 (80.44 mIoU) from Mask2Former-Swin-S (82.57 mIoU), Cityscapes.
_base_ = ['../_base_/pairs/mask2former_r50_swin-s.py']

# The four stages of the backbone; the head, which has as many channels, starts with the teacher's weights.
model = dict(
    distill=dict(
        wavelet=dict(student='backbone', loss=dict(type='freekd_mm.WaveletLoss', channels=[96, 192, 384, 768])),
    ),
)
