# WaveletLoss: DeepLabV3-R18 from PSPNet-R101 (79.76 mIoU), Cityscapes, 512x512, 40k.
_base_ = ['../_base_/pairs/deeplabv3_r18_pspnet-r101.py']

model = dict(
    distill=dict(
        wavelet=dict(student='backbone[-1:]', loss=dict(type='freekd_mm.WaveletLoss', channels=2048)),
    ),
)
