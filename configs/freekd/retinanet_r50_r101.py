# FreeKD: RetinaNet-R50 (37.4 AP) from RetinaNet-R101 (38.9 AP), COCO.
_base_ = ['../_base_/pairs/retinanet_r50_r101.py']

# Stage 1 runs first if its file does not exist yet.
frequency_prompt = dict(
    cfg_path='{{ fileDirname }}/prompt/retinanet_r101.py',
    file='work_dirs/frequency_prompts/retinanet_r101/frequency_prompt.pth',
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
