"""Cross attention in a 3x3 neighbourhood, without unfolding the neighbourhoods."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from freekd_mm.checks import check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.tensors import full_precision

KERNEL = 3


def _by_head(x: Tensor, heads: int) -> Tensor:
    """Returns the view (N, heads, C / heads, H, W) of x (N, C, H, W)."""
    return x.unflatten(1, (heads, -1))


def _neighbours(padded: Tensor, heads: int) -> Iterator[Tensor]:
    """Yields nine views (N, heads, C / heads, H, W) of (N, C, H + 2, W + 2), the neighbours row by row."""
    height, width = padded.shape[2] - KERNEL + 1, padded.shape[3] - KERNEL + 1
    for row in range(KERNEL):
        for column in range(KERNEL):
            yield _by_head(padded[:, :, row : row + height, column : column + width], heads)


class _Attend(torch.autograd.Function):
    """Softmax attention over nine neighbours with a backward that adds into one gradient in place.

    Plain autograd would make one padded gradient for each of the eighteen views and add them up.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        """Returns (N, C, H, W) of the scaled query (N, C, H, W), keys and values padded to (N, C, H + 2, W + 2).

        The scores of the relative positions are (N, heads, 9, H, W).
        """
        heads = position.shape[1]
        query_by_head = _by_head(query, heads)
        content = [(query_by_head * key).sum(2) for key in _neighbours(keys, heads)]
        attention = (torch.stack(content, 2) + position).softmax(2)
        ctx.save_for_backward(query, keys, values, attention)
        result = torch.zeros_like(query)
        for index, value in enumerate(_neighbours(values, heads)):
            _by_head(result, heads).addcmul_(attention[:, :, index, None], value)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the gradients of query, keys, values and position."""
        query, keys, values, attention = ctx.saved_tensors
        heads = attention.shape[1]
        grad_by_head, query_by_head = _by_head(grad, heads), _by_head(query, heads)
        grad_attention = torch.stack([(grad_by_head * value).sum(2) for value in _neighbours(values, heads)], 2)
        grad_scores = attention * (grad_attention - (attention * grad_attention).sum(2, keepdim=True))
        grad_query, grad_keys, grad_values = (torch.zeros_like(x) for x in (query, keys, values))
        views = zip_equal(_neighbours(keys, heads), _neighbours(grad_keys, heads), _neighbours(grad_values, heads))
        for index, (key, grad_key, grad_value) in enumerate(views):
            score = grad_scores[:, :, index, None]
            _by_head(grad_query, heads).addcmul_(score, key)
            grad_key.addcmul_(score, query_by_head)
            grad_value.addcmul_(attention[:, :, index, None], grad_by_head)
        return grad_query, grad_keys, grad_values, grad_scores


class LocalCrossAttention(nn.Module):
    r"""Every pixel of ``guide`` attends to the 3x3 neighbourhood of the same pixel in ``x``.

    With the queries q of ``guide``, the keys k and values v of ``x`` (1x1 convolutions without bias), the
    learnable relative position r and d channels per head:

    .. math:: y_i = \sum_{j \in 3 \times 3} \mathrm{softmax}_j\big(q_i \cdot (k_{i+j} + r_j) / \sqrt{d}\big)\, v_{i+j}

    As in the released code, half of the channels of r depend on the row of j and the other half on
    its column, and the neighbours beyond the border are zeros that count in the softmax.

    The keys and values are padded once and read through nine shifted views. Per head and pixel, nine scores
    are kept, not nine copies of the features.

    Args:
        channels: Channels of ``guide``, ``x`` and the output.
        num_heads: Number of heads; it must divide the channels. With one head per channel the attention is
            the released code's, which never sums over channels and stores nine scores per channel.
        position_std: Initial deviation of the relative positions; the released code has 1.
    """

    def __init__(self, channels: int, num_heads: int = 4, position_std: float = 0.02) -> None:
        super().__init__()
        check_positive('channels', channels, integer=True)
        check_positive('num_heads', num_heads, integer=True)
        if channels % num_heads:
            raise ValueError(f'num_heads should divide the channels {channels}, but got {num_heads}')
        self.num_heads = num_heads
        self.query = nn.Conv2d(channels, channels, 1, bias=False)
        self.key = nn.Conv2d(channels, channels, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.rows = nn.Parameter(position_std * torch.randn(channels // 2, KERNEL))
        self.columns = nn.Parameter(position_std * torch.randn(channels - channels // 2, KERNEL))

    def relative_position(self) -> Tensor:
        """Returns r (C, 9), the neighbours row by row."""
        rows = self.rows[:, :, None].expand(-1, KERNEL, KERNEL)
        columns = self.columns[:, None, :].expand(-1, KERNEL, KERNEL)
        return torch.cat((rows, columns)).flatten(1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Returns y (N, C, H, W) for x and the guide, which makes the queries, of the same shape."""
        query, key, value = map(full_precision, (self.query(guide), self.key(x), self.value(x)))
        with torch.autocast(x.device.type, enabled=False):
            heads, depth = self.num_heads, query.shape[1] // self.num_heads
            query = query / math.sqrt(depth)
            # q r of all heads and neighbours is one grouped 1x1 convolution, (N, heads * 9, H, W).
            kernel = self.relative_position().to(query.dtype).view(heads, depth, -1).mT.reshape(-1, depth, 1, 1)
            position = _by_head(F.conv2d(query, kernel, groups=heads), heads)
            keys, values = (F.pad(features, (1, 1, 1, 1)) for features in (key, value))
            result: Tensor = _Attend.apply(query, keys, values, position)
        return result
