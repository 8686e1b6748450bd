# The teacher of BCCD: the same detector with a full ResNet-18, trained for longer.
_base_ = ['./bccd_student.py']

train_dataloader = dict(batch_size=8)

max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
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
    backbone=dict(base_channels=64, stem_channels=64),
    neck=dict(in_channels=[128, 256, 512], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64),
)
