# WaveletLoss: SOLOv2-R50 (34.8 mask AP) from SOLOv2-R101-DCN (41.2 mask AP), COCO.
_base_ = ['../_base_/pairs/solov2_r50_r101-dcn.py']

# The five levels of the FPN; the heads differ (the teacher has deformable convolutions in its own).
model = dict(
    distill=dict(
        wavelet=dict(student='neck', loss=dict(type='freekd_mm.WaveletLoss', channels=256)),
    ),
)
