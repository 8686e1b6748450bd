# FAM-KD: PSPNet-R18 from PSPNet-R101 (79.76 mIoU), Cityscapes, 512x512, 40k.
_base_ = ['../_base_/pairs/pspnet_r18_r101.py']

model = dict(
    distill=dict(
        famkd=dict(
            student='backbone[-1:]',
            connector=dict(type='freekd_mm.FAMConnector', in_channels=512, out_channels=2048),
            loss=dict(type='freekd_mm.FeatureMSELoss', loss_weight=1.0),
        ),
    ),
)

# The weight of the FAM loss warms up, as in the paper.
custom_hooks = [dict(type='freekd_mm.DistillScheduleHook', warmup=0.025, entries=['famkd'])]
