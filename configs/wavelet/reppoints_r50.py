# WaveletLoss: RepPoints-R50 (38.6 AP) from RepPoints-X101-DCN (44.2 AP), COCO.
_base_ = ['../_base_/pairs/reppoints_r50_x101-dcn.py']

model = dict(
    distill=dict(
        wavelet=dict(student='neck', loss=dict(type='freekd_mm.WaveletLoss', channels=256)),
    ),
)

optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
