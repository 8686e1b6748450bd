"""Gives the teacher images with its own normalisation, if it differs from the student's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from freekd_mm.log import warn


class PreprocessBridge:
    """Turns the student's normalised images into the teacher's, as their data preprocessors make them.

    With x_s = (image - mean_s) / std_s, the teacher's x_t = x_s * (std_s / std_t) + (mean_s - mean_t) / std_t, after a
    swap of the colour channels if one of them reads RGB and the other BGR. Two bridges are equal if they do the same.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        mean_s, std_s = _statistics(student)
        mean_t, std_t = _statistics(teacher)
        self.swap = _swaps(student) != _swaps(teacher)
        if self.swap:
            mean_s, std_s = mean_s.flip(0), std_s.flip(0)
        self.scale, self.shift = std_s / std_t, (mean_s - mean_t) / std_t
        self.needed = bool(self.swap or (self.scale - 1).abs().max() > 1e-6 or self.shift.abs().max() > 1e-6)
        self._key = (self.swap, *self.scale.tolist(), *self.shift.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PreprocessBridge) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Maps (N, 3, H, W) images; the padding of the batch is mapped like any pixel."""
        if not self.needed:
            return inputs
        self.scale, self.shift = self.scale.to(inputs.device), self.shift.to(inputs.device)
        inputs = inputs.flip(1) if self.swap else inputs
        return inputs * self.scale.view(-1, 1, 1) + self.shift.view(-1, 1, 1)


def preprocess_bridge(student: nn.Module, teacher: nn.Module) -> PreprocessBridge | None:
    """Returns what turns the student's images into the teacher's, None if they are the same."""
    own, other = (getattr(model, 'data_preprocessor', None) for model in (student, teacher))
    bridge = PreprocessBridge(own, other) if own is not None and other is not None else None
    if bridge is None or not bridge.needed:
        return None
    warn('teacher and student normalise images differently: the teacher gets its own normalisation')
    return bridge


def as_rgb(inputs: Tensor, preprocessor: nn.Module) -> np.ndarray:
    """Returns a preprocessed image (3, H, W) as a picture (H, W, 3), RGB."""
    mean, std = (value.to(inputs.device).view(-1, 1, 1) for value in _statistics(preprocessor))
    image = (inputs.detach().float() * std + mean).clamp(0, 255).round().to(torch.uint8)
    # Pipelines load BGR.
    image = image if _swaps(preprocessor) else image.flip(0)
    return image.permute(1, 2, 0).cpu().contiguous().numpy()


def _innermost(preprocessor: nn.Module) -> nn.Module:
    """Returns the one that normalises; that of several batches by name (semi-supervised) passes them on."""
    return getattr(preprocessor, 'data_preprocessor', preprocessor)


def _statistics(preprocessor: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns mean and std of a data preprocessor, (3,) each; without normalisation 0 and 1."""
    own: list[Any] = [getattr(_innermost(preprocessor), name, None) for name in ('mean', 'std')]
    if not all(isinstance(value, Tensor) for value in own):
        return torch.zeros(3), torch.ones(3)
    mean, std = (value.detach().float().cpu().flatten().expand(3).clone() for value in own)
    return mean, std


def _swaps(preprocessor: nn.Module) -> bool:
    """Whether the colour channels of what the pipeline loaded are swapped: each package has its own name for it."""
    names = ('_channel_conversion', 'channel_conversion', 'to_rgb')
    return any(bool(getattr(_innermost(preprocessor), name, False)) for name in names)
