"""What holds for every loss that compares feature levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.compat.versions import zip_equal


def check_half_precision(loss: Any, students: list[Tensor], teachers: list[Tensor], dtype: torch.dtype) -> None:
    """In half precision, with or without autocast, the loss is the one in float32, and the gradients are in half."""
    students = [level.to(dtype).requires_grad_() for level in students]
    teachers = [level.to(dtype) for level in teachers]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = loss(students, teachers)
    wide = [level.detach().float().requires_grad_() for level in students]
    wanted = loss(wide, [level.float() for level in teachers])
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, wanted)
    for own, other in zip_equal(torch.autograd.grad(value, students), torch.autograd.grad(wanted, wide)):
        assert own.dtype == dtype
        torch.testing.assert_close(own.float(), other, rtol=1e-2, atol=1e-5)


def check_memory_formats(loss: Any, students: list[Tensor], teachers: list[Tensor]) -> None:
    """Features in channels last, and cut from larger ones, give the same loss and finite gradients."""
    wanted = loss(students, teachers)
    last = [[x.to(memory_format=torch.channels_last) for x in side] for side in (students, teachers)]
    strided = [[F.pad(x, (1, 2, 3, 4))[:, :, 3:-4, 1:-2] for x in side] for side in (students, teachers)]
    for own, other in (last, strided):
        own = [level.requires_grad_() for level in own]
        value = loss(own, other)
        torch.testing.assert_close(value, wanted)
        assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(value, own))


def within(band: Tensor, level: int, size: Sequence[int]) -> Tensor:
    """A band (..., h, w) of a wavelet level, from 1 on, of maps of a size: 0 where it reaches over the border."""
    rows, columns = (torch.arange(length, device=band.device) for length in band.shape[-2:])
    whole = ((rows + 1) * 2**level <= size[0])[:, None] & ((columns + 1) * 2**level <= size[1])
    return band * whole
