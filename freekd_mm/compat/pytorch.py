"""Changes of PyTorch itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from freekd_mm.compat.versions import torch_at_least


def normalize_on_cpu() -> None:
    """Lets SyncBatchNorm run on the CPU, where it is plain batch normalization, as PyTorch 2.1 does."""
    forward = torch.nn.SyncBatchNorm.forward
    if torch_at_least(2, 1) or forward.__module__ == __name__:
        return

    def either(self: torch.nn.SyncBatchNorm, input: Tensor) -> Tensor:
        return forward(self, input) if input.is_cuda else _BatchNorm.forward(self, input)

    torch.nn.SyncBatchNorm.forward = either  # type: ignore[method-assign]
