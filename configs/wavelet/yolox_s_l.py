# WaveletLoss: YOLOX-s (40.5 AP) from YOLOX-l (49.4 AP), COCO.
_base_ = ['../_base_/pairs/yolox_s_l.py']

# The three levels of the neck (PAFPN), 128 channels of the student projected to 256.
model = dict(
    distill=dict(
        wavelet=dict(student='neck', loss=dict(type='freekd_mm.WaveletLoss', channels=256)),
    ),
)
