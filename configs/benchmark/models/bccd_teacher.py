# The teacher of BCCD: the same detector with a full ResNet-18, on the same schedule.
_base_ = ['./bccd_student.py']

model = dict(backbone=dict(base_channels=64, stem_channels=64), neck=dict(in_channels=[128, 256, 512]))
