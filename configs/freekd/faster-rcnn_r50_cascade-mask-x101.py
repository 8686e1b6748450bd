# FreeKD: Faster R-CNN-R50 (38.4 AP) from Cascade Mask R-CNN-X101-64x4d (45.6 AP), COCO.
_base_ = ['../_base_/pairs/faster-rcnn_r50_cascade-mask-x101.py']

# Stage 1 runs first if its file does not exist yet.
frequency_prompt = dict(
    cfg_path='{{ fileDirname }}/prompt/cascade-mask-rcnn_x101.py',
    file='work_dirs/frequency_prompts/cascade-mask-rcnn_x101/frequency_prompt.pth',
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
