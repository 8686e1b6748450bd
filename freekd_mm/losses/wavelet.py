"""Our own recipe: the high wavelet bands, standardised over the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.losses.bands.distance import Correlation, Level, standardised
from freekd_mm.losses.bands.loss import BandLoss
from freekd_mm.registry import MODELS

#: A feature level is weighted by this power of its area (in positions).
POWERS = {'equal': 0.0, 'root': 0.5, 'area': 1.0}


@MODELS.register_module()
class WaveletLoss(BandLoss):
    r"""Squared differences of the high Haar bands, each divided by its deviation over the batch.

    With :math:`a_k, b_k` band k of teacher and student in one channel, and means over all images and positions of all
    processes,

    .. math::
        L = \sum_l v_l \frac{1}{3 J_l C_l} \sum_{k,c} \Big\langle \Big(\frac{b_k}{s(b_k)} - \frac{a_k}{s(a_k)}\Big)^2
        \Big\rangle = \sum_l v_l \, \overline{2 - 2 r_k}, \quad r_k = \frac{\langle a_k b_k \rangle}{s(a_k) s(b_k)}

    High bands have no mean, so r is their correlation: positions whose blocks reach over the border do not count, since
    there are zeros; of an odd size the last row or column has no part in the loss. The value lies between 0 and 4 for
    every model. With a prompt the means are weighted by its squared masks, scaled to a mean of 1 in each band of an
    image: the prompt says where to look, and not how much.

    Args:
        channels: Channels of the features: one number, or one per feature level.
        level_weights: Weights v of the feature levels: ``'equal'``, ``'area'`` (a level weighs by its positions, so
            that each position of the features counts the same), ``'root'`` (by the root of them, in between), each
            with a sum of 1; or one number per level, divided by their count.
        loss_weight: Factor on the returned value.
        **bands: Options of :class:`~freekd_mm.losses.bands.loss.BandLoss`: ``levels``, ``min_positions``, ``prompt``.
    """

    standardises = True
    compares_low = False
    part = 'high'
    #: What is computed from the means of products.
    judge = staticmethod(standardised)

    def __init__(
        self,
        channels: int | Sequence[int],
        *,
        level_weights: Literal['equal', 'root', 'area'] | Sequence[float] = 'root',
        loss_weight: float = 2.0,
        **bands: Any,
    ) -> None:
        super().__init__(channels, loss_weight=loss_weight, **bands)
        if isinstance(level_weights, (list, tuple)):
            level_weights = tuple(level_weights)
            for weight in level_weights:
                check_positive('level_weights', weight, zero=True)
        else:
            check_choice('level_weights', level_weights, POWERS)
        self.level_weights = level_weights

    def compare(self, students: Sequence[Tensor], levels: Sequence[Level]) -> Tensor:
        """Returns the value of each level (levels,)."""
        return Correlation.apply(levels, self.judge, self.levels, self.loss_weight, *students)

    def weigh(self, theirs: Tensor, ours: Tensor) -> Tensor:
        """Returns the squares of the teacher's masks."""
        return theirs.square().sum(1)

    def band_weights(self, teachers: Sequence[Tensor], depths: Sequence[int]) -> list[tuple[float, list[float]]]:
        """Returns the weights of the bands: a low band counts as much as all high bands together, or nothing."""
        if isinstance(self.level_weights, str):
            power = POWERS[self.level_weights]
            sizes = [(x.shape[2] * x.shape[3]) ** power if depth else 0.0 for x, depth in zip_equal(teachers, depths)]
            shares = [size / (sum(sizes) or 1.0) for size in sizes]
        elif len(self.level_weights) == len(teachers):
            shares = [weight / len(teachers) for weight in self.level_weights]
        else:
            raise ValueError(
                f"level_weights should be 'equal', 'root', 'area' or one number for each of the {len(teachers)} "
                f'levels, but got {self.level_weights}'
            )
        found = []
        for teacher, depth, share in zip_equal(teachers, depths, shares):
            share /= max(teacher.shape[1], 1)
            found.append((share if self.compares_low else 0.0, [share / (3 * depth) for _ in range(depth)]))
        return found
