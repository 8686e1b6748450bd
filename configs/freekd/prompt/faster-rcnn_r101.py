# FreeKD, stage 1: the frequency prompt of the teacher.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py']

load_from = 'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth'
custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook', modules='neck')]
work_dir = 'work_dirs/frequency_prompts/faster-rcnn_r101'
