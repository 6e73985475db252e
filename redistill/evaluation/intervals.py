"""Intervals: Wilson for a share, bootstrap over prompts and seeds for differences, Student's t over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redistill.core import rng

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


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased pass@k from `correct` of `samples` (Chen et al., arXiv 2107.03374, eq. 1)."""
    if not 1 <= k <= samples:
        raise ValueError(f"k must be between 1 and {samples}, got {k}")
    if samples - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - correct + 1, samples + 1))
