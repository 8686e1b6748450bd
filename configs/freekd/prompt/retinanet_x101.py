# FreeKD, stage 1: the frequency prompt of the teacher.
_base_ = ['mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py']

load_from = 'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_1x_coco/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth'
custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook', modules='neck')]
work_dir = 'work_dirs/frequency_prompts/retinanet_x101'
