# The teacher of CamVid with ImageNet weights: EfficientNet-Lite2, trained for twice as long.
_base_ = ['./camvid_lite_student.py']

max_iters = 1600
train_cfg = dict(max_iters=max_iters, val_interval=400)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_iters, end=max_iters, eta_min_ratio=0.01, by_epoch=False),
]
model = dict(backbone=dict(variant='lite2'), decode_head=dict(in_channels=120))
