# The student of the detection demo: 0.8 M parameters, a bit more than a minute on one core.
_base_ = [
    'mmdet::_base_/default_runtime.py',
    './_base_/det_scenes.py',
    './_base_/gfl.py',
    './_base_/det_schedule.py',
]
