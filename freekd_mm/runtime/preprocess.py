"""Gives the teacher images with its own normalisation, if it differs from the student's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from freekd_mm.log import warn
from freekd_mm.tensors import constant


@dataclass(frozen=True)
class PreprocessBridge:
    """Turns the student's normalised images into the teacher's, as their data preprocessors make them.

    With x_s = (image - mean_s) / std_s, the teacher's x_t = x_s * (std_s / std_t) + (mean_s - mean_t) / std_t, after a
    swap of the colour channels if one of them reads RGB and the other BGR.
    """

    swap: bool
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Maps (N, 3, H, W) images; the padding of the batch is mapped like any pixel."""
        scale, shift = (constant(_per_channel, inputs, *values) for values in (self.scale, self.shift))
        return (inputs.flip(1) if self.swap else inputs) * scale + shift


def preprocess_bridge(student: nn.Module, teacher: nn.Module) -> PreprocessBridge | None:
    """Returns what turns the student's images into the teacher's, None if they are the same."""
    own, other = (getattr(model, 'data_preprocessor', None) for model in (student, teacher))
    if own is None or other is None:
        return None
    (mean_s, std_s), (mean_t, std_t) = _statistics(own), _statistics(other)
    swap = _swaps(own) != _swaps(other)
    if swap:
        mean_s, std_s = mean_s.flip(0), std_s.flip(0)
    scale, shift = std_s / std_t, (mean_s - mean_t) / std_t
    if not swap and (scale - 1).abs().max() <= 1e-6 and shift.abs().max() <= 1e-6:
        return None
    warn('teacher and student normalise images differently: the teacher gets its own normalisation')
    return PreprocessBridge(swap, tuple(scale.tolist()), tuple(shift.tolist()))


def _per_channel(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


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
