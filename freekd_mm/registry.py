"""The registries of freekd_mm: children of mmengine's root registries.

mmengine imports ``<scope>.registry`` by itself when a config names ``type='freekd_mm.X'``, and
``locations`` are imported on the first look-up, so that a user's config needs no ``custom_imports``.
Each location must import with mmengine alone; what needs mmcv, mmdet, mmseg or mmrazor imports them
where it is used.
"""

from __future__ import annotations

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

from freekd_mm.checkpoints.loading import install_safe_loader
from freekd_mm.checkpoints.saving import install_atomic_saver

SCOPE = 'freekd_mm'

install_safe_loader()
install_atomic_saver()

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope=SCOPE,
    locations=[
        'freekd_mm.losses',
        'freekd_mm.prompts',
        'freekd_mm.connectors',
        'freekd_mm.runtime',
    ],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope=SCOPE,
    locations=['freekd_mm.engine', 'freekd_mm.stage1', 'freekd_mm.visualize'],
)
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope=SCOPE, locations=['freekd_mm.datasets'])
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope=SCOPE, locations=['freekd_mm.robustness'])
