"""Tables that stay on a device."""

from __future__ import annotations

import torch

from freekd_mm.frequency import dct2d
from freekd_mm.frequency.dct import dct_matrix
from freekd_mm.tensors import constant


def test_is_made_once_per_dtype_and_arguments():
    calls = []

    def make(size):
        calls.append(size)
        return torch.arange(size, dtype=torch.float64)

    like = torch.zeros(1)
    first = constant(make, like, 3)
    assert first.dtype == torch.float32
    assert constant(make, torch.ones(2, 2), 3) is first
    assert constant(make, like.double(), 3).dtype == torch.float64
    assert constant(make, like, 4).tolist() == [0, 1, 2, 3]
    assert calls == [3, 3, 4]


def test_made_without_gradients_it_serves_with_gradients():
    """A tensor of inference mode cannot be saved for a backward pass."""
    with torch.inference_mode():
        dct2d(torch.randn(1, 7, 11))
    assert not constant(dct_matrix, torch.zeros(1), 11).is_inference()
    x = torch.randn(1, 7, 11, requires_grad=True)
    dct2d(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach(), rtol=1e-4, atol=1e-5)
