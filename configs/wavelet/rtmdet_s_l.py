# WaveletLoss: RTMDet-s (44.5 AP) from RTMDet-l (51.3 AP), COCO.
_base_ = ['../_base_/pairs/rtmdet_s_l.py']

# The three levels of the neck (PAFPN of CSPNeXt), 128 channels of the student projected to 256.
model = dict(
    distill=dict(
        wavelet=dict(student='neck', loss=dict(type='freekd_mm.WaveletLoss', channels=256)),
    ),
)
