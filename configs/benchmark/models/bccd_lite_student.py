# BCCD: the data and schedule of bccd_student.py, on EfficientNet-Lite0 with ImageNet weights.
_base_ = ['./bccd_student.py', './_base_/backbone.py']

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.2))))
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
