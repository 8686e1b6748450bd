# WaveletLoss: DINO-R50 (49.0 AP, 12 epochs) from DINO-Swin-L, COCO.
_base_ = ['../_base_/pairs/dino_r50_swin-l.py']

model = dict(
    distill=dict(
        wavelet=dict(student='neck', loss=dict(type='freekd_mm.WaveletLoss', channels=256)),
    ),
)
