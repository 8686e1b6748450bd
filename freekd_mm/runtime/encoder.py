"""A backbone (and neck) without head or task loss: the student of feature-only distillation."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModel
from torch import Tensor, nn

from freekd_mm.compat import install
from freekd_mm.registry import MODELS


@MODELS.register_module()
class FeatureEncoder(BaseModel):
    """Makes a model of a bare backbone, for distilling an encoder only by its features.

    Args:
        backbone: Config of the backbone, or the module.
        neck: Config of a neck after it.
        data_preprocessor: Normalisation and batching, as in any model.
        init_cfg: Initialisation.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        neck: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        install()
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = backbone if isinstance(backbone, nn.Module) else MODELS.build(backbone)
        self.neck = MODELS.build(neck) if neck is not None else None

    def extract_feat(self, inputs: Tensor) -> Any:
        """Returns the features of (N, 3, H, W) images."""
        features = self.backbone(inputs)
        return features if self.neck is None else self.neck(features)

    def loss(self, inputs: Tensor, data_samples: list | None = None) -> dict:
        """Runs the features and returns no loss of its own: all comes from distillation."""
        self.extract_feat(inputs)
        return {}

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor') -> Any:
        """Returns the features, or with ``mode='loss'`` an empty dict."""
        return self.loss(inputs) if mode == 'loss' else self.extract_feat(inputs)
