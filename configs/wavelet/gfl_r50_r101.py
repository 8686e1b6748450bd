# WaveletLoss: GFL-R50 (40.2 AP, 1x) from GFL-R101 (44.7 AP, multi-scale 2x), COCO.
_base_ = ['../_base_/pairs/gfl_r50_r101.py']

model = dict(
    distill=dict(
        wavelet=dict(student='neck', loss=dict(type='freekd_mm.WaveletLoss', channels=256)),
    ),
)

optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
