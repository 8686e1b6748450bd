# FreeKD, stage 1: the frequency prompt of the teacher.
_base_ = ['mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py']

load_from = 'https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_80k_cityscapes/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth'
custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook', modules='backbone[-1:]')]
work_dir = 'work_dirs/frequency_prompts/pspnet_r101'
