# WaveletLoss: CondInst-R50 (36.0 mask AP) from Cascade Mask R-CNN-X101-64x4d (40.3 mask AP), COCO.
_base_ = ['../_base_/pairs/condinst_r50_cascade-mask-x101.py']

# The four levels that both have, strides 8 to 64: the student's FPN begins at stride 8, the teacher's at 4.
model = dict(
    distill=dict(
        wavelet=dict(student='neck[0:4]', teacher='neck[1:5]', loss=dict(type='freekd_mm.WaveletLoss', channels=256)),
    ),
)
