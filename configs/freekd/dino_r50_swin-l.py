# FreeKD: DINO-R50 (49.0 AP, 12 epochs) from DINO-Swin-L, COCO.
_base_ = ['../_base_/pairs/dino_r50_swin-l.py']

# Stage 1 runs first if its file does not exist yet.
frequency_prompt = dict(
    cfg_path='{{ fileDirname }}/prompt/dino_swin-l.py',
    file='work_dirs/frequency_prompts/dino_swin-l/frequency_prompt.pth',
)
model = dict(
    distill=dict(
        freekd=dict(
            student='neck',
            loss=dict(
                type='freekd_mm.FreeKDLoss',
                channels=256,
                # The teacher's level of stride 4 has no counterpart in the student.
                prompt=dict(
                    type='freekd_mm.PoIMaskGenerator',
                    channels=256,
                    prompt=frequency_prompt['file'],
                    indices=(1, 2, 3, 4),
                ),
            ),
        ),
    ),
)
