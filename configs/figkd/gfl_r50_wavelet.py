# WaveletLoss on the features and FiGKD on the class scores: GFL-R50 from GFL-R101, COCO.
_base_ = ['../wavelet/gfl_r50_r101.py']

model = dict(
    distill=dict(
        figkd=dict(
            student='bbox_head[0]',
            loss=dict(type='freekd_mm.FiGKDLoss', num_classes=80, use_sigmoid=True, foreground=True),
        ),
    ),
)
