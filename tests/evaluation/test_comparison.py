"""What `compared` makes of runs, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from redistill.core.budget import Budget
from redistill.evaluation.comparison import COSTS, Curve, Ended, Point, compared, curve_of, first_at, reach, verdict
from redistill.evaluation.intervals import Interval

BUDGET = Budget("rollouts", 100)


def run(seed: int, at: Sequence[float], scores: Sequence[Sequence[float]]) -> Ended:
    """A run whose costs are all its rollouts."""
    points = [Point(f"at-{x}", dict.fromkeys(COSTS, x), np.array(score)) for x, score in zip(at, scores)]
    return Ended(seed, points, dict.fromkeys(COSTS, at[-1]))


def test_a_curve_is_linear_between_evaluations_and_flat_beyond() -> None:
    curve = Curve(np.array([0.0, 40.0, 100.0]), np.array([[0.0], [0.4], [1.0]]))
    places = [-5, 0, 20, 40, 70, 100, 130]
    theirs = np.interp(places, curve.at_K, curve.score_KP[:, 0])
    assert [float(curve.read(at)[0]) for at in places] == pytest.approx(list(theirs))


@pytest.mark.parametrize(
    ("at", "score", "expected"),
    [
        ([0, 100], [0.0, 1.0], 0.5),
        ([0, 50, 100], [0.0, 1.0, 1.0], 0.75),
        ([0, 50], [0.0, 1.0], 0.75),  # ended early: its last score counts for the rest
        ([0, 80, 120], [0.0, 0.8, 1.2], 0.5),  # beyond the budget: read at the budget
    ],
)
def test_the_area_is_the_mean_score_over_the_budget(at: list[float], score: list[float], expected: float) -> None:
    curve = Curve(np.array(at, dtype=float), np.array(score)[:, None])
    assert float(curve.area(100.0)[0]) == pytest.approx(expected)


def test_of_two_evaluations_at_one_place_the_later_counts() -> None:
    curve = curve_of(run(0, [0, 50, 50], [[0.0], [0.2], [0.3]]), "rollouts")
    assert curve.at_K.tolist() == [0, 50]
    assert curve.read(50).tolist() == [0.3]


def test_the_first_place_at_or_above_a_target() -> None:
    places = [0.0, 10.0, 20.0]
    assert first_at(places, np.array([0.0, 0.5, 1.0]), 0.75) == pytest.approx(15.0)
    assert first_at(places, np.array([0.8, 0.1, 0.2]), 0.5) == 0.0
    assert first_at(places, np.array([0.0, 0.9, 0.1]), 0.45) == pytest.approx(5.0)
    assert first_at(places, np.array([0.0, 0.1, 0.2]), 0.3) == float("inf")
    assert first_at(places, np.array([0.0, 0.1, 0.2]), 0.2) == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "not distinguishable"), (0.0, 0.1, "not distinguishable")],
)  # fmt: skip
def test_a_word_is_what_the_interval_says(low: float, high: float, word: str) -> None:
    assert verdict(Interval(0.0, low, high), 3) == word
    assert verdict(Interval(0.0, low, high), 1) == f"{word} (on this seed)"


def arms(luck: np.random.Generator, gain: float) -> dict[str, list[Ended]]:
    """Two methods of three seeds and 80 prompts: both rise by 0.3, the second by `gain` more."""
    made = {}
    hard_P = luck.normal(size=80) * 0.1
    for name, top in (("base", 0.5), ("other", 0.5 + gain)):
        made[name] = [
            run(seed, [0, 50, 100], [0.2 + hard_P, (0.2 + top) / 2 + hard_P + luck.normal(size=80) * 0.02,
                                     top + hard_P + luck.normal(size=80) * 0.02])
            for seed in range(3)
        ]  # fmt: skip
    return made


def test_a_planted_difference_is_found_in_final_score_area_and_budget() -> None:
    found = compared(arms(np.random.default_rng(0), 0.2), BUDGET, parts=4)
    base, other = found["base"], found["other"]
    assert base["difference"] is None
    assert other["difference"]["verdict"] == "better"
    assert other["difference"]["estimate"] == pytest.approx(0.2, abs=0.01)
    low, high = other["difference"]["bootstrap"]
    assert low < other["difference"]["estimate"] < high
    # The mean score of a rise from 0.2 to `top` is the mean of the two: the areas differ by half of the gain.
    assert other["area_difference"]["estimate"] == pytest.approx(0.1, abs=0.01)
    # From 0.2 to 0.7 the baseline's 0.5 is passed at 60% of the way.
    assert other["reach"]["estimate"] == pytest.approx(60, abs=2)
    assert other["reach"]["low"] <= other["reach"]["estimate"] <= other["reach"]["high"]
    assert base["reach"]["estimate"] == pytest.approx(100)
    assert [point["at"] for point in other["curve"]] == [0, 25, 50, 75, 100]
    assert other["curve"][4]["estimate"] == pytest.approx(other["final"]["estimate"])
    assert other["cost"] == {unit: [100, 100, 100] for unit in COSTS}


def test_what_is_not_reached_is_none() -> None:
    found = compared(arms(np.random.default_rng(0), -0.2), BUDGET, parts=4)["other"]
    assert found["difference"]["verdict"] == "worse"
    assert found["reach"]["estimate"] is None
    assert found["reach"]["high"] is None
    assert found["reach"]["reached"] == 0.0


def test_pairing_takes_away_what_seeds_and_prompts_share() -> None:
    """Prompts of very different difficulty and seeds of different luck, the same for both arms: the difference is sharp."""
    luck = np.random.default_rng(5)
    hard_P = luck.normal(size=50)
    chance = [luck.normal() for _ in range(3)]
    made = {
        name: [run(s, [0, 100], [hard_P, hard_P + chance[s] + gain + luck.normal(size=50) * 1e-3]) for s in range(3)]
        for name, gain in (("base", 0.0), ("other", 0.05))
    }
    gap = compared(made, BUDGET, parts=1)["other"]["difference"]
    assert gap["verdict"] == "better"
    assert gap["high"] - gap["low"] < 0.01


def test_where_prompts_are_not_told_apart_seeds_alone_count() -> None:
    made = {name: [run(s, [0, 100], [[0.0], [x]]) for s, x in enumerate(finals)]
            for name, finals in (("base", (0.1, 0.2, 0.3)), ("other", (0.2, 0.3, 0.4)))}  # fmt: skip
    gap = compared(made, BUDGET, parts=1)["other"]["difference"]
    assert gap["low"] == pytest.approx(0.1)
    assert gap["high"] == pytest.approx(0.1)


def test_the_budget_of_a_baseline_that_overshoots_is_its_own() -> None:
    own = [curve_of(run(0, [0, 120], [[0.0, 0.0], [1.0, 0.0]]), "rollouts")]
    assert reach(own, own, BUDGET)["estimate"] == pytest.approx(120)
