# WaveletLoss: Mask2Former-R50 (52.0 PQ) from Mask2Former-Swin-S (54.5 PQ), COCO.
_base_ = ['../_base_/pairs/mask2former_r50_swin-s_panoptic.py']

# The four stages of the backbone; the pixel decoder and the queries start with the teacher's weights.
model = dict(
    distill=dict(
        wavelet=dict(student='backbone', loss=dict(type='freekd_mm.WaveletLoss', channels=[96, 192, 384, 768])),
    ),
)
