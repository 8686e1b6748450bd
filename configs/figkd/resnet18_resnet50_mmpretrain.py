# FiGKD on the logits of a classifier: ResNet-18 from ResNet-50, ImageNet. Needs the extra freekd_mm[mmpretrain].
_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py']

model = dict(
    _delete_=True,
    type='freekd_mm.DistilledModel',
    architecture={{_base_.model}},
    teacher=dict(
        cfg_path='mmpretrain::resnet/resnet50_8xb32_in1k.py',
        checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth',
    ),
    distill=dict(
        figkd=dict(student='head.fc', teacher='head.fc', loss=dict(type='freekd_mm.FiGKDLoss')),
    ),
)
