# CamVid: the data and schedule of camvid_student.py, on EfficientNet-Lite0 with ImageNet weights, stride 16.
_base_ = ['./camvid_student.py', './_base_/backbone.py']

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.2))))
model = dict(
    data_preprocessor=dict(mean=[127.0, 127.0, 127.0], std=[128.0, 128.0, 128.0]),
    backbone=dict(
        _delete_=True,
        type='freekd_mm.EfficientNetLite',
        variant='lite0',
        out_indices=(2, 4),
        weights='imagenet',
        frozen_stages=2,
        norm_eval=True,
    ),
    decode_head=dict(in_channels=112, in_index=1),
)
