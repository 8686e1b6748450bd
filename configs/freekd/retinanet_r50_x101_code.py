# FreeKD with the loss and the weights of the authors' code, RetinaNet-R50 from RetinaNet-X101-64x4d, COCO: six tokens,
# raw differences of the high bands (weight 1), an MSE on the neck (weight 5), SmoothL1 on the box branch (weight 1).
_base_ = ['./retinanet_r50_x101.py']

frequency_prompt = dict(
    cfg_path='{{ fileDirname }}/prompt/retinanet_x101_t6.py',
    file='work_dirs/frequency_prompts/retinanet_x101_t6/frequency_prompt.pth',
)
model = dict(
    distill=dict(
        freekd=dict(loss=dict(mode='code', prompt=frequency_prompt['file'])),
        mse=dict(student='neck', loss=dict(type='freekd_mm.FeatureMSELoss', loss_weight=5.0)),
        box=dict(student='bbox_head[1]', connector=False, loss=dict(type='mmdet.SmoothL1Loss', loss_weight=1.0)),
    ),
)
