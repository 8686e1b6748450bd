# VOC: photographs of 20 classes, long side 192. A GFL on EfficientNet-Lite0 with ImageNet weights; neck and head are as
# wide as the teacher's, so that they fit.
_base_ = [
    'mmdet::_base_/default_runtime.py',
    '../../demo/_base_/gfl.py',
    '../../demo/_base_/det_schedule.py',
    './_base_/backbone.py',
]

# tools/benchmark.py puts --data-root in its place.
data_root = 'data/voc07/'
metainfo = dict(
    classes=(
        'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable', 'dog',
        'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
    ),
)  # fmt: skip

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(type='CocoDataset', data_root=data_root, metainfo=metainfo, data_prefix=dict(img='img/'))

# Loading in the training process: no workers, so that the random numbers of the augmentation are the seed's.
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=None,
    drop_last=True,
    dataset=dict(**dataset, ann_file='train.json', filter_cfg=dict(filter_empty_gt=True), pipeline=train_pipeline),
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
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'val.json', metric='bbox')
test_evaluator = dict(type='CocoMetric', ann_file=data_root + 'test.json', metric='bbox')

max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.2))))
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
    neck=dict(in_channels=[40, 112, 320], out_channels=128),
    bbox_head=dict(num_classes=20, in_channels=128, feat_channels=128, stacked_convs=3),
    test_cfg=dict(nms_pre=1000, max_per_img=100),
)
