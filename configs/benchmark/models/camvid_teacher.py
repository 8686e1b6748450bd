# The teacher of CamVid: a PSPNet with a ResNetV1c-18 of base width 48, trained for twice as long.
_base_ = ['./camvid_student.py']

max_iters = 1600
train_cfg = dict(max_iters=max_iters, val_interval=400)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_iters, end=max_iters, eta_min_ratio=0.01, by_epoch=False),
]
model = dict(
    backbone=dict(base_channels=48, stem_channels=48),
    decode_head=dict(in_channels=384),
)
