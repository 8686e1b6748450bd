# The student of the segmentation demo: 0.8 M parameters, a bit more than a minute on one core.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    './_base_/seg_scenes.py',
    './_base_/semantic_fpn.py',
    './_base_/seg_schedule.py',
]
