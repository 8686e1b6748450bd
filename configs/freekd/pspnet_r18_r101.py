# FreeKD: PSPNet-R18 from PSPNet-R101 (79.76 mIoU), Cityscapes, 512x512, 40k.
_base_ = ['../_base_/pairs/pspnet_r18_r101.py']

# Stage 1 runs first if its file does not exist yet.
frequency_prompt = dict(
    cfg_path='{{ fileDirname }}/prompt/pspnet_r101.py',
    file='work_dirs/frequency_prompts/pspnet_r101/frequency_prompt.pth',
)
model = dict(
    distill=dict(
        freekd=dict(
            student='backbone[-1:]',
            loss=dict(type='freekd_mm.FreeKDLoss', channels=2048, prompt=frequency_prompt['file']),
        ),
    ),
)
