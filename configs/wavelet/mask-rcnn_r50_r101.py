# WaveletLoss: Mask R-CNN-R50 (34.7 mask AP) from Mask R-CNN-R101 (36.1 mask AP), COCO.
_base_ = ['../_base_/pairs/mask-rcnn_r50_r101.py']

# The five levels of the FPN, which boxes and masks both use.
model = dict(
    distill=dict(
        wavelet=dict(student='neck', loss=dict(type='freekd_mm.WaveletLoss', channels=256)),
    ),
)
