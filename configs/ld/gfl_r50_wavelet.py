# Localisation distillation, and WaveletLoss on the features: GFL-R50 from GFL-R101, COCO.
_base_ = ['../wavelet/gfl_r50_r101.py']

model = dict(
    distill=dict(
        ld=dict(
            student=['bbox_head[0]', 'bbox_head[1]'],
            teacher=['bbox_head[0]', 'bbox_head[1]'],
            loss=dict(type='freekd_mm.LDLoss', temperature=10.0, loss_weight=1.0),
        ),
    ),
)
