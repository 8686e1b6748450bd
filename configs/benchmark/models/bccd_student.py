# BCCD: 364 microscope images of blood cells, 320 x 240. A narrow GFL with a ResNet-18 of base width 16, from scratch.
_base_ = ['mmdet::_base_/default_runtime.py', '../../demo/_base_/gfl.py', '../../demo/_base_/det_schedule.py']

# tools/benchmark.py puts --data-root in its place.
data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'), palette=[(220, 20, 60), (0, 110, 230), (255, 140, 0)])

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    # Keeps the size; the COCO evaluation asks for the scale factor.
    dict(type='Resize', scale_factor=1.0, keep_ratio=True),
    # Cells have no up or down.
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=1.0, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(type='CocoDataset', data_root=data_root, metainfo=metainfo, data_prefix=dict(img='img/'))

# Loading in the training process: no workers, so that the random numbers of the augmentation are the seed's.
train_dataloader = dict(
    # 51 steps per epoch: with 8 pictures a student has not learned much after 10 epochs.
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=None,
    drop_last=True,
    dataset=dict(**dataset, ann_file='train.json', pipeline=train_pipeline),
)
# Settings are chosen on val.json and reported on test.json.
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='val.json', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**dataset, ann_file='test.json', test_mode=True, pipeline=test_pipeline),
)
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'val.json', metric='bbox', classwise=True)
test_evaluator = dict(type='CocoMetric', ann_file=data_root + 'test.json', metric='bbox', classwise=True)

# Half of the teacher's schedule: after 20 epochs the student alone is within 3 AP of the teacher.
max_epochs = 10
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
    backbone=dict(stem_channels=16),
    neck=dict(out_channels=64),
    bbox_head=dict(num_classes=3, in_channels=64, feat_channels=64),
    test_cfg=dict(nms_pre=1000, max_per_img=100),
)
