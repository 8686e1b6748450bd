# WaveletLoss: SegFormer-B0 (76.54 mIoU) from SegFormer-B5 (82.25 mIoU), Cityscapes.
_base_ = ['../_base_/pairs/segformer_b0_b5.py']

model = dict(
    distill=dict(
        wavelet=dict(student='backbone', loss=dict(type='freekd_mm.WaveletLoss', channels=[64, 128, 320, 512])),
    ),
)
