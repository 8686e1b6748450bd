# FreeKD: RepPoints-R50 (38.6 AP) from RepPoints-X101-DCN (44.2 AP), COCO.
_base_ = ['../_base_/pairs/reppoints_r50_x101-dcn.py']

# Stage 1 runs first if its file does not exist yet.
frequency_prompt = dict(
    cfg_path='{{ fileDirname }}/prompt/reppoints_x101-dcn.py',
    file='work_dirs/frequency_prompts/reppoints_x101-dcn/frequency_prompt.pth',
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
