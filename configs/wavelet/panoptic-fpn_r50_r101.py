# WaveletLoss: Panoptic FPN-R50 (40.2 PQ) from Panoptic FPN-R101 (42.2 PQ), COCO.
_base_ = ['../_base_/pairs/panoptic-fpn_r50_r101.py']

# The five levels of the FPN, which things and stuff both use.
model = dict(
    distill=dict(
        wavelet=dict(student='neck', loss=dict(type='freekd_mm.WaveletLoss', channels=256)),
    ),
)
