"""Small helpers on tensors and on tuples of feature levels."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Union

import torch
from torch import Tensor

from freekd_mm.compat.versions import is_compiling, zip_equal

Levels = Union[Tensor, typing.Sequence[Tensor]]


def as_levels(features: Levels, what: str = 'features') -> tuple[Tensor, ...]:
    """Returns a tensor or a sequence of tensors as a tuple of levels."""
    levels = (features,) if isinstance(features, Tensor) else tuple(features)
    for index, level in enumerate(levels):
        if not isinstance(level, Tensor):
            raise TypeError(f'{what} should be one or several tensors, but level {index} is a {type(level).__name__}')
    if not levels:
        raise ValueError(f'{what} should hold at least one level, but got an empty sequence')
    return levels


def shapes(levels: Sequence[Tensor]) -> str:
    """Returns the shapes of the levels for an error message."""
    return ', '.join(str(tuple(level.shape)) for level in levels)


def full_precision(x: Tensor) -> Tensor:
    """Returns ``x`` in float32, or in float64 if it is that already: sums in half precision lose too many digits."""
    return x if x.dtype == torch.float64 else x.float()


def mean(x: Tensor) -> Tensor:
    """Returns the mean of ``x``; 0 if ``x`` is empty (a batch of 0)."""
    return x.sum() / max(x.numel(), 1)


def check_same_shapes(name: str, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> None:
    """Raises ValueError unless every level of the student has the shape of the teacher's."""
    for index, (student, teacher) in enumerate(zip_equal(students, teachers)):
        if student.shape != teacher.shape:
            raise ValueError(
                f"{name}: level {index} of the student should have the teacher's shape {tuple(teacher.shape)}, "
                f'but got {tuple(student.shape)}'
            )


def to_device(values: Sequence, like: Tensor) -> Tensor:
    """Returns numbers as a tensor like another, without waiting for the device."""
    found = torch.as_tensor(values, dtype=like.dtype)
    return found.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else found.to(like.device)


def constant(make: Callable[..., Tensor], like: Tensor, *arguments: Any) -> Tensor:
    """Returns ``make(*arguments)`` on the device and in the dtype of a tensor; made once: do not write to it."""
    if is_compiling():
        return make(*arguments).to(like)
    # A tensor without values gets one of its kind.
    return _constant(make, arguments, like.device, like.dtype, type(like))


# As many as some hundred sizes of the input need, in a training with pictures of many sizes.
@lru_cache(maxsize=1024)
def _constant(
    make: Callable[..., Tensor], arguments: tuple[Any, ...], device: torch.device, dtype: torch.dtype, kind: type
) -> Tensor:
    with torch.inference_mode(False):
        return make(*arguments).to(device, dtype)
