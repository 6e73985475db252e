"""Intervals over seeds and prompts at once, against scipy and closed forms, and how often they are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from redistill.evaluation.comparison import verdict
from redistill.evaluation.intervals import crossed_interval, crossed_weights, paired_difference
from scipy import stats


def half(values_SP: np.ndarray) -> float:
    found = crossed_interval(values_SP)
    assert found.estimate == pytest.approx(values_SP.mean())
    assert found.estimate - found.low == pytest.approx(found.high - found.estimate)
    return found.high - found.estimate


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_where_only_seeds_vary_it_is_students_t(seeds: int) -> None:
    mean_S = np.random.default_rng(seeds).normal(size=seeds)
    values = np.repeat(mean_S[:, None], 7, axis=1)
    low, high = stats.t.interval(0.95, seeds - 1, mean_S.mean(), stats.sem(mean_S))
    assert crossed_interval(values).low == pytest.approx(low, rel=1e-3)  # the table of quantiles has four digits
    assert crossed_interval(values).high == pytest.approx(high, rel=1e-3)
    assert half(mean_S[:, None]) == pytest.approx(half(values)), "a metric without prompts is one number a seed"


def test_where_only_prompts_vary_it_is_the_normal_interval() -> None:
    prompt_P = np.random.default_rng(0).normal(size=200)
    values = np.repeat(prompt_P[None, :], 4, axis=0)
    assert half(values) == pytest.approx(stats.norm.ppf(0.975) * stats.sem(prompt_P), rel=1e-6)


def test_the_parts_are_the_mean_squares_of_a_two_way_layout() -> None:
    """Written out with loops, as in a textbook: sums of squares of rows, columns and the rest."""
    values = np.random.default_rng(1).normal(size=(3, 11)) + np.random.default_rng(2).normal(size=(1, 11)) * 3
    grand, rows, columns = values.mean(), [r.mean() for r in values], [c.mean() for c in values.T]
    of_rows = 11 * sum((r - grand) ** 2 for r in rows) / 2
    of_columns = 3 * sum((c - grand) ** 2 for c in columns) / 10
    rest = sum((values[i, j] - rows[i] - columns[j] + grand) ** 2 for i in range(3) for j in range(11)) / 20
    t, z = stats.t.ppf(0.975, 2), stats.norm.ppf(0.975)
    expected = max(t * t * of_rows, z * z * rest) + z * z * (of_columns - rest)
    assert of_columns > rest
    assert half(values) ** 2 == pytest.approx(expected / 33, rel=1e-3)


def test_seeds_that_agree_by_chance_do_not_give_a_width_of_nothing() -> None:
    values = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    assert values.mean(axis=1).std() == 0
    assert half(values) > 0.3


def test_one_seed_is_a_bootstrap_over_its_prompts() -> None:
    values = np.random.default_rng(3).random((1, 150))
    found = crossed_interval(values)
    assert (found.low, found.high) == (
        (same := paired_difference(values[0].tolist(), [0.0] * 150)).low,
        same.high,
    )
    theirs = stats.bootstrap((values[0],), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
    assert found.low == pytest.approx(theirs.low, abs=0.005)
    assert found.high == pytest.approx(theirs.high, abs=0.005)


def test_the_bootstrap_over_both_has_its_exact_variance() -> None:
    """E (w'Xv)^2 from the second moments of the two independent multinomials."""
    values = np.random.default_rng(4).normal(size=(3, 20))
    weight_BS, weight_BP = crossed_weights(3, 20, 20_000)
    assert weight_BS.sum(axis=1) == pytest.approx(np.ones(20_000))
    assert weight_BP.sum(axis=1) == pytest.approx(np.ones(20_000))
    means = ((weight_BS @ values) * weight_BP).sum(axis=1)

    def second(count: int) -> np.ndarray:
        return np.eye(count) / count**2 - np.ones((count, count)) / count**3 + np.ones((count, count)) / count**2

    exact = float((second(3) @ values @ second(20) * values).sum()) - values.mean() ** 2
    assert means.mean() == pytest.approx(values.mean(), abs=4 * (exact / 20_000) ** 0.5)
    assert means.var() == pytest.approx(exact, rel=0.05)


def simulated(luck: np.random.Generator, seeds: int, seed_sd: float, effect: float = 0.0) -> np.ndarray:
    """Differences [S, P] of two arms' right and wrong answers: 60 prompts of their own difficulty, each arm and seed with a
    skill of its own, and chance."""
    hard_P = luck.normal(size=60)
    arms = []
    for gain in (effect, 0.0):
        skill_S = luck.normal(size=(seeds, 1)) * seed_sd + gain
        arms.append(luck.random((seeds, 60)) < 1 / (1 + np.exp(-(hard_P + skill_S))))
    return arms[0].astype(float) - arms[1]


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.3, 1.0])
def test_two_arms_that_are_the_same_are_called_so(seeds: int, seed_sd: float) -> None:
    """At most 5% of 2,000 comparisons without a difference may be called different (4 standard errors allowed)."""
    luck = np.random.default_rng(seeds)
    called = [verdict(crossed_interval(simulated(luck, seeds, seed_sd)), seeds) for _ in range(2000)]
    wrong = sum(word != "not distinguishable" for word in called) / 2000
    assert wrong <= 0.05 + 4 * (0.05 * 0.95 / 2000) ** 0.5


def test_a_planted_difference_is_found_and_has_its_sign() -> None:
    luck = np.random.default_rng(0)
    words = [verdict(crossed_interval(simulated(luck, 3, 0.1, 2.0)), 3) for _ in range(300)]
    assert words.count("better") > 0.9 * 300
    assert words.count("worse") == 0
    words = [verdict(crossed_interval(-simulated(luck, 3, 0.1, 2.0)), 3) for _ in range(300)]
    assert words.count("worse") > 0.9 * 300
