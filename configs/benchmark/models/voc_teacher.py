# The teacher of VOC: the wide student's neck and head on EfficientNet-Lite2, trained for twice as long.
_base_ = ['./voc_student.py']

max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        end=max_epochs,
        eta_min_ratio=0.01,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
model = dict(backbone=dict(variant='lite2'), neck=dict(in_channels=[48, 120, 352]))
