# FAM-KD: RepPoints-R50 (38.6 AP) from RepPoints-X101-DCN (44.2 AP), COCO.
_base_ = ['../_base_/pairs/reppoints_r50_x101-dcn.py']

model = dict(
    distill=dict(
        famkd=dict(
            student='neck',
            connector=dict(type='freekd_mm.FAMConnector', in_channels=256, out_channels=256, num_levels=5),
            loss=dict(type='freekd_mm.FeatureMSELoss', loss_weight=1.0),
        ),
    ),
)

# The weight of the FAM loss warms up, as in the paper.
custom_hooks = [dict(type='freekd_mm.DistillScheduleHook', warmup=0.01, entries=['famkd'])]
