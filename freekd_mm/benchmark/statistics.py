"""What paired runs can show: a bootstrap interval of their difference, and the p-value of a sign-flip test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Tuple

import numpy as np

Interval = Tuple[float, float]
#: Up to here all signs are tried: 2 ** 14 of them; beyond, as many are drawn.
EXACT = 14
RUN_DRAWS, IMAGE_DRAWS = 10_000, 400


def interval(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Returns the percentile bootstrap interval of the mean over the runs, drawn always in the same way.

    With few runs it hardly leaves their range, and is too narrow.
    """
    values = np.asarray(differences, dtype=float)
    picked = np.random.default_rng(0).integers(len(values), size=(RUN_DRAWS, len(values)))
    return _percentiles(values[picked].mean(1), level)


def image_interval(pairs: Sequence[Callable[[np.ndarray], float]], images: int, level: float = 0.95) -> Interval:
    """Returns the interval if runs and test images are both drawn again; all pairs see the same images in one draw.

    Args:
        pairs: For each pair of runs the difference of the metric, given how often each image counts, (images,).
        images: How many test images there are.
        level: Its probability.
    """
    generator = np.random.default_rng(0)
    means = []
    for _ in range(IMAGE_DRAWS):
        weights = np.bincount(generator.integers(images, size=images), minlength=images)
        drawn = np.bincount(generator.integers(len(pairs), size=len(pairs)))
        means.append(sum(times * pair(weights) for times, pair in zip(drawn, pairs) if times) / len(pairs))
    return _percentiles(np.array(means), level)


def p_value(differences: Sequence[float]) -> float:
    """Returns the two-sided p-value of a sign-flip test: how often random signs give a mean as far from zero.

    With n runs it is never below 2 / 2 ** n: 0.25 for three, 0.03 for six.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) <= EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(2**EXACT, len(values)))
    # Sums that differ only by rounding are equal.
    return float(np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-9))


def _percentiles(means: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
