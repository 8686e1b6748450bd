# BCCD: the data of bccd_student.py, on EfficientNet-Lite0 with ImageNet weights.
_base_ = ['./bccd_student.py', './_base_/backbone.py']

# After 10 epochs the student is within 2.4 AP of its teacher, which leaves nothing to measure.
max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.2))))
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
model = dict(
    data_preprocessor=dict(mean=[127.0, 127.0, 127.0], std=[128.0, 128.0, 128.0]),
    backbone=dict(
        _delete_=True,
        type='freekd_mm.EfficientNetLite',
        variant='lite0',
        weights='imagenet',
        frozen_stages=2,
        norm_eval=True,
    ),
    neck=dict(in_channels=[40, 112, 320]),
)
