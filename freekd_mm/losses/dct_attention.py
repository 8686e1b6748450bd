"""DCT-driven attention distillation (arXiv 2205.01997): compares activation maps in the frequency domain."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.frequency import dct2d
from freekd_mm.losses.base import DistillLoss
from freekd_mm.registry import MODELS
from freekd_mm.tensors import full_precision, mean

Transform = Literal['dct', 'fft_real', 'fft_abs']


class _Energy(torch.autograd.Function):
    """Mean of the squares over the channels: (N, C, H, W) to (N, H, W).

    Plain autograd copies the features three times in the backward pass; this reads them once.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        """Returns the mean of the squares."""
        ctx.save_for_backward(features)
        return features.square().sum(1) / features.shape[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Returns the gradient of the features."""
        (features,) = ctx.saved_tensors
        return features * (grad * (2 / features.shape[1]))[:, None]


def _min_max(maps: Tensor, eps: float, by_max: bool = False) -> Tensor:
    """Normalises every map of (N, H, W) to start at 0 and end at 1 (``by_max``: to have the maximum 1 before a shift).

    A constant map, whose range is at most ``eps`` times its largest absolute value, becomes 0.
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    span = high - low
    constant = span <= eps * torch.maximum(high, -low)
    # 1 instead of 0 before the division: a masked infinity would still give a NaN gradient.
    divisor = (high if by_max else span).masked_fill(constant, 1.0)
    return ((maps - low) / divisor).masked_fill(constant, 0.0)


@MODELS.register_module()
class DCTAttentionLoss(DistillLoss):
    r"""Euclidean distance between the spectra of the activation maps of the student and of the teacher.

    Per image and level, with :math:`m(x) = (x - \min x) / (\max x - \min x)`:

    .. math::
        A = m\big(\tfrac{1}{C} \sum_c F_c^2\big), \qquad
        S = m\big(\mathrm{DCT}(A - \bar A)\big), \qquad
        L = \sum_l \frac{1}{N} \sum_n \| S^t_{n,l} - S^s_{n,l} \|_2

    The mean over the channels is taken, so student and teacher may have any numbers of channels. Maps of other
    sizes are compared on the low-frequency block that both spectra have, cut out before the last
    normalisation. A constant map (of one pixel, for instance) has the spectrum 0 and no gradient.

    Args:
        transform: ``'dct'``, the orthonormal DCT-II of the paper. ``'fft_real'``, what the released code computes
            instead: the real part of the FFT, with its sign. ``'fft_abs'``, as in an older version of that code:
            its absolute value, with both normalisations dividing by the maximum.
        eps: A map is constant if its range is at most ``eps`` times its largest absolute value.
        loss_weight: Factor on the returned value.
    """

    any_shape = True
    part = 'dct'

    def __init__(self, transform: Transform = 'dct', eps: float = 1e-5, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        check_choice('transform', transform, ('dct', 'fft_real', 'fft_abs'))
        check_positive('eps', eps)
        self.transform, self.eps = transform, eps

    def level_loss(self, student: Tensor, teacher: Tensor, level: int) -> Tensor:
        """Returns the mean distance of one level."""
        if student.ndim != 4 or teacher.ndim != 4 or student.shape[0] != teacher.shape[0]:
            raise ValueError(
                f'{type(self).__name__}: level {level} should be (N, C, H, W) with the same N, but got '
                f'{tuple(student.shape)} from the student and {tuple(teacher.shape)} from the teacher'
            )
        size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
        # Apart, so that equal features give exactly 0; rounding would have a gradient as large as any difference.
        difference = self.spectrum(student, size) - self.spectrum(teacher, size)
        # vector_norm has the gradient 0 at 0, where the square root of a sum has NaN.
        return mean(torch.linalg.vector_norm(difference, dim=(1, 2)))

    def spectrum(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns S (N, h, w), the normalised spectrum of ``features`` (N, C, H, W) cut to ``size`` (h, w)."""
        by_max = self.transform == 'fft_abs'
        energy: Tensor = _Energy.apply(full_precision(features))
        maps = _min_max(energy, self.eps, by_max)
        maps = maps - maps.mean((1, 2), keepdim=True)
        if maps.shape[0] == 0:
            return maps[:, : size[0], : size[1]]  # some FFT libraries refuse an empty batch
        if self.transform == 'dct':
            return _min_max(dct2d(maps)[:, : size[0], : size[1]], self.eps)
        spectrum = torch.fft.fft2(maps).real
        spectrum = spectrum.abs() if by_max else spectrum
        for dim, kept in ((1, size[0]), (2, size[1])):
            if kept < spectrum.shape[dim]:
                # The zero frequency is first, the negative ones are last.
                spectrum = spectrum.roll(kept // 2, dim).narrow(dim, 0, kept).roll(-(kept // 2), dim)
        return _min_max(spectrum, self.eps, by_max)
