# WaveletLoss: FCOS-R50 (38.5 AP) from FCOS-R101 (40.8 AP), COCO.
_base_ = ['../_base_/pairs/fcos_r50_r101.py']

model = dict(
    distill=dict(
        wavelet=dict(student='neck', loss=dict(type='freekd_mm.WaveletLoss', channels=256)),
    ),
)

optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
