# WaveletLoss: Deformable DETR-R50 (44.3 AP) from the same with refined boxes and two stages (47.0 AP), COCO.
_base_ = ['../_base_/pairs/deformable-detr_r50_refine-twostage.py']

# The four levels of the neck, which the encoder reads; queries have no order to compare them in.
model = dict(
    distill=dict(
        wavelet=dict(student='neck', loss=dict(type='freekd_mm.WaveletLoss', channels=256)),
    ),
)
