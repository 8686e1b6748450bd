# FreeKD, stage 1: the frequency prompt of the teacher.
_base_ = ['mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py']

load_from = 'https://download.openmmlab.com/mmdetection/v3.0/dino/dino-5scale_swin-l_8xb2-12e_coco/dino-5scale_swin-l_8xb2-12e_coco_20230228_072924-a654145f.pth'
custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook', modules='neck')]
work_dir = 'work_dirs/frequency_prompts/dino_swin-l'
