# The generated scenes as a Cityscapes data set; `python tools/make_scenes.py data/scenes` writes them.
data_root = 'data/scenes/'
metainfo = dict(
    classes=(
        'striped_ball', 'checked_ball', 'grate', 'mesh', 'gear', 'saw',
        'sand', 'gravel', 'planks', 'weave', 'bar',
    ),
    palette=[
        [220, 20, 60], [255, 140, 0], [0, 110, 230], [0, 190, 200], [150, 60, 200], [230, 90, 190],
        [222, 205, 150], [130, 120, 110], [150, 100, 60], [110, 160, 90], [250, 240, 60],
    ],
)  # fmt: skip
crop_size = (160, 160)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

# BaseSegDataset and not CityscapesDataset, which accepts only its own classes.
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='leftImg8bit/train/sceneville', seg_map_path='gtFine/train/sceneville'),
        img_suffix='_leftImg8bit.png',
        seg_map_suffix='_gtFine_labelTrainIds.png',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        metainfo=metainfo,
        data_prefix=dict(img_path='leftImg8bit/val/sceneville', seg_map_path='gtFine/val/sceneville'),
        img_suffix='_leftImg8bit.png',
        seg_map_suffix='_gtFine_labelTrainIds.png',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
