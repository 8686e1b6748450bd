# FreeKD, stage 1: the frequency prompt of the teacher.
_base_ = ['mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py']

load_from = 'https://download.openmmlab.com/mmdetection/v2.0/gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth'
custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook', modules='neck')]
work_dir = 'work_dirs/frequency_prompts/gfl_r101'
