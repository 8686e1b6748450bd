# FreeKD, stage 1: the frequency prompt of the teacher.
_base_ = ['mmdet::fcos/fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco.py']

load_from = 'https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco-511424d6.pth'
custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook', modules='neck')]
work_dir = 'work_dirs/frequency_prompts/fcos_r101'
