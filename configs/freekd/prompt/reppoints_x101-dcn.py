# FreeKD, stage 1: the frequency prompt of the teacher.
_base_ = ['mmdet::reppoints/reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco.py']

load_from = 'https://download.openmmlab.com/mmdetection/v2.0/reppoints/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco_20200329-f87da1ea.pth'
custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook', modules='neck')]
work_dir = 'work_dirs/frequency_prompts/reppoints_x101-dcn'
