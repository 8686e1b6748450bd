# FreeKD, stage 1, with the six tokens of the released configs.
_base_ = ['./retinanet_x101.py']

custom_hooks = [dict(type='freekd_mm.FrequencyPromptHook', modules='neck', mode='code', num_tokens=6)]
work_dir = 'work_dirs/frequency_prompts/retinanet_x101_t6'
