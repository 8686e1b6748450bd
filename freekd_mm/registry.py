"""The registries of freekd_mm: children of mmengine's root registries.

mmengine imports ``<scope>.registry`` when a config names ``type='freekd_mm.X'``. The tables below say
which module holds ``X``, so a user's config needs no ``custom_imports``, and no other module is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from mmengine import registry as mmengine

from freekd_mm.compat.versions import remove_prefix

SCOPE = 'freekd_mm'


class TableRegistry(mmengine.Registry):
    """A registry that imports the module of a name when it is asked for that name.

    ``table`` has the names that each module holds; the modules are written without ``freekd_mm.``.
    """

    def __init__(self, name: str, parent: mmengine.Registry, table: Mapping[str, Sequence[str]]) -> None:
        super().__init__(name, parent=parent, scope=SCOPE)
        #: The module that holds each name.
        self.modules = {held: f'{SCOPE}.{module}' for module, names in table.items() for held in names}

    @property
    def names(self) -> list[str]:
        """All names: ours, also those that are not imported yet, and what a user has registered here."""
        return sorted({*self.modules, *self.module_dict})

    def get(self, key: str) -> Any:
        """Returns what is registered as ``key``, None if there is no such name."""
        module = self.modules.get(remove_prefix(key, f'{SCOPE}.'))
        if module is not None:
            import_module(module)
        return super().get(key)


MODELS = TableRegistry(
    'model',
    mmengine.MODELS,
    {
        'prompts.generator': ['PoIMaskGenerator'],
        'losses.dct_attention': ['DCTAttentionLoss'],
        'losses.figkd': ['FiGKDLoss'],
        'losses.freekd': ['FreeKDLoss', 'FreeKDPlusLoss'],
        'losses.heads': ['CrossKDLoss', 'LDLoss'],
        'losses.logit_kl': ['LogitKLLoss'],
        'losses.mse': ['FeatureMSELoss'],
        'losses.wavelet': ['WaveletLoss'],
        'connectors.fam': ['FAMConnector'],
        'connectors.review': ['FAMReviewConnector'],
        'runtime.encoder': ['FeatureEncoder'],
        'runtime.model': ['DistilledModel'],
    },
)
HOOKS = TableRegistry(
    'hook',
    mmengine.HOOKS,
    {
        'engine.checkpoint_hook': ['SafeCheckpointHook'],
        'engine.exact': ['ExactResumeHook'],
        'engine.nonfinite': ['NonFiniteHook'],
        'engine.schedule': ['DistillScheduleHook'],
        'engine.signals': ['GracefulStopHook'],
        'stage1.hook': ['FrequencyPromptHook'],
        'visualize.hook': ['DistillPicturesHook'],
        'benchmark.images': ['BenchmarkImagesHook'],
    },
)
TRANSFORMS = TableRegistry('transform', mmengine.TRANSFORMS, {'robustness.corruptions': ['Corrupt']})
DATASETS = TableRegistry('dataset', mmengine.DATASETS, {'datasets.unlabelled': ['ImageFolder', 'WithUnlabelled']})
DATA_SAMPLERS = TableRegistry('data sampler', mmengine.DATA_SAMPLERS, {'datasets.unlabelled': ['MixedBatchSampler']})
