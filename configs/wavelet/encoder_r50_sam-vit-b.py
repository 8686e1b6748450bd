# WaveletLoss without a task loss: the image encoder of SAM (ViT-B, mmpretrain) into a ResNet-50, on the images of COCO.
_base_ = [
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(1024, 1024), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    dataset=dict(filter_cfg=dict(_delete_=True, filter_empty_gt=False, min_size=32), pipeline=train_pipeline)
)
# An encoder has no metric of its own.
val_dataloader = val_evaluator = val_cfg = test_dataloader = test_evaluator = test_cfg = None

model = dict(
    type='freekd_mm.DistilledModel',
    architecture=dict(
        type='freekd_mm.FeatureEncoder',
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
            pad_size_divisor=32,
        ),
        backbone=dict(
            type='ResNet',
            depth=50,
            num_stages=3,
            out_indices=(2,),
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            norm_cfg=dict(type='BN', requires_grad=True),
            init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
        ),
    ),
    teacher=dict(
        cfg_path='mmpretrain::sam/vit-base-p16_sam_headless.py',
        checkpoint='https://download.openmmlab.com/mmclassification/v1/vit_sam/vit-base-p16_sam-pre_3rdparty_sa1b-1024px_20230411-2320f9cc.pth',
    ),
    distill=dict(
        wavelet=dict(student='backbone', teacher='backbone', loss=dict(type='freekd_mm.WaveletLoss', channels=256)),
    ),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5, norm_type=2),
)
