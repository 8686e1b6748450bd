"""Wires the student's levels to the teacher's: which belong together, and how they become comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Tuple

import torch.nn.functional as F
from mmengine.model import kaiming_init
from torch import Tensor, nn

from freekd_mm.compat.versions import zip_equal

Shape = Tuple[int, ...]


def match_levels(
    students: Sequence[Shape], teachers: Sequence[Shape], name: str, logits: bool = False, chosen: bool = False
) -> tuple[tuple[int, int], ...]:
    """Pairs levels (student, teacher) of one resolution; as many of both in order, unless all resolutions are shifted.

    The shapes (C, H, W) are for one image size. Logits are never projected, so their channels must match. Where the
    user has chosen the levels, as many of both are paired in order.
    """
    if logits and [shape[0] for shape in students] != [shape[0] for shape in teachers]:
        raise ValueError(
            f"distill '{name}': logits of student and teacher should have the same levels, classes and anchors, "
            f'but got {_list(students)} and {_list(teachers)}'
        )
    pairs = [
        (s, t)
        for t, teacher in enumerate(teachers)
        for s, student in enumerate(students)
        if len(student) == len(teacher) == 3 and student[1:] == teacher[1:]
    ]
    once = all(len(set(own)) == len(pairs) for own in zip(*pairs))
    in_order = len(students) == len(teachers) and (chosen or any(s == t for s, t in pairs))
    if pairs and once and not in_order:
        return tuple(pairs)
    if len(students) != len(teachers):
        raise ValueError(
            f"distill '{name}': the student has {len(students)} levels ({_list(students)}) and the teacher "
            f'{len(teachers)} ({_list(teachers)}), and they cannot be paired by resolution. Choose levels that belong '
            "together, for example student='neck[0:3]', teacher='neck[1:4]'."
        )
    for level, (student, teacher) in enumerate(zip_equal(students, teachers)):
        if len(student) != len(teacher):
            raise ValueError(
                f"distill '{name}': at level {level} the student's {_list([student])} and the teacher's "
                f'{_list([teacher])} should both be maps or both be vectors; tap a module before its pooling'
            )
    return tuple((index, index) for index in range(len(students)))


def tokens_to_map(tokens: Tensor, like: tuple[int, int]) -> Tensor:
    """Reshapes (N, L, C) or (N, 1 + L, C) transformer tokens to (N, C, h, w), h : w as the image's height : width."""
    count = tokens.shape[1]
    for length in (count, count - 1):
        height = round((length * like[0] / like[1]) ** 0.5)
        for h in (height, height - 1, height + 1):
            if h > 0 and length % h == 0 and abs(h * like[1] - length // h * like[0]) <= max(like):
                return tokens[:, count - length :].transpose(1, 2).reshape(tokens.shape[0], -1, h, length // h)
    raise ValueError(f'{count} tokens should fill a grid of the shape of the {like[0]}x{like[1]} image, but do not')


def as_maps(levels: Sequence[Tensor], image: tuple[int, int]) -> tuple[Tensor, ...]:
    """Returns all levels as maps; (N, L, C) tokens are reshaped, (N, C, H, W) and (N, K) stay."""
    return tuple(tokens_to_map(level, image) if level.dim() == 3 else level for level in levels)


def without_vectors(levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Leaves out the vectors (class tokens, pooled features) among maps and tokens; vectors alone stay."""
    return tuple(level for level in levels if level.dim() > 2) or tuple(levels)


def projection(student: int, teacher: int) -> nn.Module:
    """Returns phi, a 1x1 convolution from the student's to the teacher's channels, if they differ."""
    if student == teacher:
        return nn.Identity()
    phi = nn.Conv2d(student, teacher, 1)
    kaiming_init(phi, mode='fan_in', nonlinearity='linear')
    return phi


def alignment(student: Shape, teacher: Shape) -> str:
    """Returns how a student's level (C, H, W) becomes comparable with the teacher's: projected, then resized."""
    actions = [f'projected {student[0]} -> {teacher[0]}'] if student[:1] != teacher[:1] else []
    if student[1:] != teacher[1:]:
        actions.append('upsampled' if student[1] < teacher[1] else 'averaged down')
    return ', '.join(actions) or 'as it is'


def resize(feature: Tensor, to: Sequence[int]) -> Tensor:
    """Resizes (N, C, H, W) to (height, width), bilinearly to a larger one, by averages to a smaller one."""
    height, width = to
    if feature.shape[-2:] == (height, width):
        return feature
    if feature.shape[-2] < height or feature.shape[-1] < width:
        return F.interpolate(feature, size=(height, width), mode='bilinear', align_corners=False)
    return F.adaptive_avg_pool2d(feature, (height, width))


def size(shape: Shape) -> str:
    """Returns ``'64x32x32'``."""
    return 'x'.join(map(str, shape))


def _list(shapes: Sequence[Shape]) -> str:
    return ', '.join(map(size, shapes))
