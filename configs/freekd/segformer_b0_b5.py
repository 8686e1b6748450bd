# FreeKD: SegFormer-B0 (76.54 mIoU) from SegFormer-B5 (82.25 mIoU), Cityscapes.
_base_ = ['../_base_/pairs/segformer_b0_b5.py']

# Stage 1 runs first if its file does not exist yet.
frequency_prompt = dict(
    cfg_path='{{ fileDirname }}/prompt/segformer_b5.py',
    file='work_dirs/frequency_prompts/segformer_b5/frequency_prompt.pth',
)
model = dict(
    distill=dict(
        freekd=dict(
            student='backbone',
            loss=dict(type='freekd_mm.FreeKDLoss', channels=[64, 128, 320, 512], prompt=frequency_prompt['file']),
        ),
    ),
)
