# FreeKD: FCOS-R50 (38.5 AP) from FCOS-R101 (40.8 AP), COCO.
_base_ = ['../_base_/pairs/fcos_r50_r101.py']

# Stage 1 runs first if its file does not exist yet.
frequency_prompt = dict(
    cfg_path='{{ fileDirname }}/prompt/fcos_r101.py',
    file='work_dirs/frequency_prompts/fcos_r101/frequency_prompt.pth',
)
model = dict(
    distill=dict(
        freekd=dict(
            student='neck',
            loss=dict(type='freekd_mm.FreeKDLoss', channels=256, prompt=frequency_prompt['file']),
        ),
    ),
)

optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
