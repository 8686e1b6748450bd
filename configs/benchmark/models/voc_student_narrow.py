# VOC: the student of voc_student.py with a narrow neck and a head of two layers: nothing of its teacher's fits.
_base_ = ['./voc_student.py']

model = dict(neck=dict(out_channels=48), bbox_head=dict(in_channels=48, feat_channels=48, stacked_convs=2))
