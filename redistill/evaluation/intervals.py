"""Intervals: Wilson for a share, bootstrap over prompts for differences, Student's t over seeds, both over seeds and prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redistill.core import rng

Array = NDArray[Any]
T_975 = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
    10: 2.228,
    15: 2.131,
    20: 2.086,
}
"""Two-sided 95% quantiles of Student's t by degrees of freedom."""
Z_975 = 1.959964


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds at a confidence level."""

    estimate: float
    low: float
    high: float
    level: float = 0.95


def wilson(successes: float, count: int, z: float = 1.959964) -> Interval:
    """Wilson's score interval of a share (Wilson 1927); [0, 1] without data."""
    if count == 0:
        return Interval(float("nan"), 0.0, 1.0)
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values (one for each seed) with its 95% t interval; the degrees of freedom round down."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Interval(mean, float("-inf"), float("inf"))
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    known = max(df for df in T_975 if df <= count - 1)
    half = T_975[known] * spread / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def paired_difference(after: Sequence[float], before: Sequence[float], draws: int = 2000) -> Interval:
    """Mean of after - before over the same prompts with a 95% percentile bootstrap over prompts (keyed, so repeatable)."""
    if len(after) != len(before):
        raise ValueError(f"paired lists differ in length: {len(after)} and {len(before)}")
    gap = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    picks = (rng.uniform("bootstrap", np.arange(draws)[:, None], np.arange(len(gap))[None, :]) * len(gap)).astype(int)
    means = gap[picks].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(gap.mean()), float(low), float(high))


def crossed_interval(values_SP: Array) -> Interval:
    """Mean over seeds [S] and the prompts [P] that all of them share, with a 95% interval for other seeds and other prompts.

    Student's t over the seeds' means (at least the normal interval of the residual noise, so that seeds that agree by
    chance do not give a width of 0) and, added in quadrature, the normal interval of what prompts vary beyond that noise. A
    percentile bootstrap over two to five seeds is far too narrow; docs/compare.md has the figures. One seed: a
    bootstrap over its prompts, which says nothing about other seeds.
    """
    values = np.asarray(values_SP, dtype=np.float64)
    seeds, prompts = values.shape
    if seeds == 1:
        return paired_difference(values[0].tolist(), [0.0] * prompts) if prompts > 1 else t_interval(values[0])
    over_seeds = t_interval(values.mean(axis=1))
    noise, beyond = _two_way(values) if prompts > 1 else (0.0, 0.0)
    seeds_square = max((over_seeds.high - over_seeds.estimate) ** 2, Z_975**2 * noise)
    half = math.sqrt(seeds_square + Z_975**2 * beyond)
    return Interval(over_seeds.estimate, over_seeds.estimate - half, over_seeds.estimate + half)


def _two_way(values_SP: Array) -> tuple[float, float]:
    """Parts of the variance of the mean over all, by the mean squares of the two-way layout: of the residual, and of the
    choice of prompts beyond it (0 where that is negative)."""
    seeds, prompts = values_SP.shape
    seed_S, prompt_P = values_SP.mean(axis=1), values_SP.mean(axis=0)
    residual_SP = values_SP - seed_S[:, None] - prompt_P[None, :] + values_SP.mean()
    residual_square = float(np.square(residual_SP).sum()) / ((seeds - 1) * (prompts - 1))
    prompt_square = seeds * float(prompt_P.var(ddof=1))
    count = seeds * prompts
    return residual_square / count, max(0.0, prompt_square - residual_square) / count


def crossed_weights(seeds: int, prompts: int, draws: int) -> tuple[Array, Array]:
    """Bootstrap over seeds and prompts at once: weights [B, S] and [B, P] of `draws` resamples of each (keyed, so repeatable);
    each row sums to 1. (W_BS @ values_SP * W_BP).sum(1) are the means of the resamples (Owen 2007, arXiv 0712.1111)."""
    found = []
    for what, count in (("seeds", seeds), ("prompts", prompts)):
        uniform = rng.uniform("crossed-bootstrap", what, np.arange(draws)[:, None], np.arange(count)[None, :])
        picks = (uniform * count).astype(int) + np.arange(draws)[:, None] * count
        found.append(np.bincount(picks.ravel(), minlength=draws * count).reshape(draws, count) / count)
    return found[0], found[1]


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased pass@k from `correct` of `samples` (Chen et al., arXiv 2107.03374, eq. 1)."""
    if not 1 <= k <= samples:
        raise ValueError(f"k must be between 1 and {samples}, got {k}")
    if samples - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - correct + 1, samples + 1))
