"""Intervals against scipy's, and pass@k against its definition."""

from __future__ import annotations

import itertools
import math

import pytest
from redistill.evaluation.intervals import paired_difference, pass_at_k, t_interval, wilson
from scipy import stats


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (3, 10), (58, 100), (100, 100)])
def test_wilson_is_scipys(successes: int, count: int) -> None:
    ours, theirs = wilson(successes, count), stats.binomtest(successes, count).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


@pytest.mark.parametrize("count", [2, 3, 5, 11])
def test_t_interval_is_scipys(count: int) -> None:
    values = [math.sin(3 * i) for i in range(count)]
    ours = t_interval(values)
    low, high = stats.t.interval(0.95, count - 1, loc=ours.estimate, scale=stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-3)


def test_t_interval_between_its_table_rows_is_wider_never_narrower() -> None:
    values = [math.sin(3 * i) for i in range(14)]
    ours = t_interval(values)
    low, high = stats.t.interval(0.95, 13, loc=ours.estimate, scale=stats.sem(values))
    assert ours.low <= low
    assert ours.high >= high


def test_a_paired_difference_is_repeatable_and_covers_the_normal_interval() -> None:
    after = [float(i % 3 == 0) for i in range(300)]
    before = [float(i % 5 == 0) for i in range(300)]
    one, two = paired_difference(after, before), paired_difference(after, before)
    assert one == two
    gap = [a - b for a, b in zip(after, before)]
    half = 1.96 * stats.sem(gap)
    assert (one.low, one.high) == pytest.approx((one.estimate - half, one.estimate + half), abs=0.01)
    with pytest.raises(ValueError, match="differ in length"):
        paired_difference([1.0], [1.0, 0.0])


def test_pass_at_k_is_the_share_of_subsets_with_a_success() -> None:
    for samples, correct, k in itertools.product((1, 4, 6), (0, 1, 3), (1, 2, 4)):
        if correct > samples or k > samples:
            continue
        subsets = list(itertools.combinations([i < correct for i in range(samples)], k))
        assert pass_at_k(correct, samples, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
