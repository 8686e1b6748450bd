# The teacher of bccd_small_student.py: width 32.
_base_ = ['./bccd_small_student.py']

model = dict(backbone=dict(base_channels=32, stem_channels=32), neck=dict(in_channels=[64, 128, 256]))
