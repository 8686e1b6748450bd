# FreeKD, stage 1: the frequency prompt of the teacher.
_base_ = ['mmdet::retinanet/retinanet_r101_fpn_2x_coco.py']

load_from = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_2x_coco/retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth'
custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook', modules='neck')]
work_dir = 'work_dirs/frequency_prompts/retinanet_r101'
