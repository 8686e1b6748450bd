# FreeKD, stage 1: the frequency prompt of the teacher.
_base_ = ['mmseg::segformer/segformer_mit-b5_8xb1-160k_cityscapes-1024x1024.py']

load_from = 'https://download.openmmlab.com/mmsegmentation/v0.5/segformer/segformer_mit-b5_8x1_1024x1024_160k_cityscapes/segformer_mit-b5_8x1_1024x1024_160k_cityscapes_20211206_072934-87a052ec.pth'
custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook', modules='backbone')]
work_dir = 'work_dirs/frequency_prompts/segformer_b5'
