# FreeKD: RetinaNet-R50 (37.4 AP) from RetinaNet-X101-64x4d (41.0 AP), COCO.
_base_ = ['../_base_/pairs/retinanet_r50_x101.py']

# Stage 1 runs first if its file does not exist yet.
frequency_prompt = dict(
    cfg_path='{{ fileDirname }}/prompt/retinanet_x101.py',
    file='work_dirs/frequency_prompts/retinanet_x101/frequency_prompt.pth',
)
model = dict(
    distill=dict(
        freekd=dict(
            student='neck',
            loss=dict(type='freekd_mm.FreeKDLoss', channels=256, prompt=frequency_prompt['file']),
        ),
    ),
)

# The authors' schedule: SGD with learning rate 0.02 for 16 images, gradient clip 35.
optim_wrapper = dict(optimizer=dict(lr=0.02), clip_grad=dict(max_norm=35, norm_type=2))
