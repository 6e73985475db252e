"""Accuracy and capability apart: the numbered checks of rl-vs-distillation that are about numbers."""

from __future__ import annotations

import itertools
import math

import pytest
from redistill.core import rng
from redistill.evaluation.capability import (
    CLASSES,
    accuracy,
    capability,
    compared,
    curve,
    difficulty,
    profile,
    transitions,
    unsolved_bound,
)
from redistill.evaluation.intervals import pass_at_k


def test_check_1_accuracy_can_rise_while_capability_falls() -> None:
    def both(shares: list[float]) -> tuple[float, float]:
        return sum(shares) / len(shares), sum(1 - (1 - p) ** 256 for p in shares) / len(shares)

    before, after = both([0.5, 0.01]), both([0.9, 0.0])
    assert before == (pytest.approx(0.255), pytest.approx(0.9618, abs=1e-4))
    assert after == (pytest.approx(0.45), pytest.approx(0.5))
    # and the estimators say so of counts with these shares
    samples = 1000
    assert accuracy([900, 0], samples) > accuracy([500, 10], samples)
    assert capability([900, 0], samples, 256) < capability([500, 10], samples, 256)


def test_check_2_what_no_success_among_256_means() -> None:
    assert unsolved_bound(256) == pytest.approx(0.011634, abs=1e-6)
    assert (1 - unsolved_bound(64)) ** 64 == pytest.approx(0.05)


def test_check_3_unbiased_estimator() -> None:
    assert pass_at_k(0, 8, 3) == 0
    assert pass_at_k(8, 8, 3) == 1
    assert pass_at_k(1, 4, 2) == pytest.approx(0.5)
    assert [pass_at_k(x, 7, 1) for x in range(8)] == pytest.approx([x / 7 for x in range(8)])
    for x, k in itertools.product(range(7), range(1, 7)):  # every choice of k of the samples
        hits = [any(i < x for i in chosen) for chosen in itertools.combinations(range(6), k)]
        assert pass_at_k(min(x, 6), 6, k) == pytest.approx(sum(hits) / len(hits))


def counts_of(shares: list[float], samples: int, *key: int | str) -> list[int]:
    return [int((rng.uniform("draw", *key, i, range(samples)) < p).sum()) for i, p in enumerate(shares)]


def test_check_4_curve_and_bins() -> None:
    shares = rng.uniform("shares", range(300)).tolist()
    counts = counts_of(shares, 64, 0)
    found = curve(counts, 64)
    assert found[1] == pytest.approx(accuracy(counts, 64))
    assert found[64] == pytest.approx(sum(count > 0 for count in counts) / 300)
    assert list(found) == [1, 2, 4, 8, 16, 32, 64]
    assert all(low <= high for low, high in itertools.pairwise(found.values()))
    table = transitions(counts, counts_of(shares, 64, 1), 64)
    assert sum(map(sum, table)) == 300
    own = transitions(counts, counts, 64)
    assert all(own[i][j] == 0 for i in range(4) for j in range(4) if i != j)
    assert [difficulty(c, 64) for c in (0, 1, 16, 17, 48, 49, 64)] == [
        "unsolved",
        "hard",
        "hard",
        "middle",
        "middle",
        "easy",
        "easy",
    ]


def test_check_4_a_model_against_itself_has_no_change_in_any_class() -> None:
    """On split halves; told by one half and compared with it, the classes seem to regress to the mean."""
    shares = (0.5 * rng.uniform("shares", range(4000))).tolist()
    half = 8
    base = list(zip(counts_of(shares, half, 1), counts_of(shares, half, 2)))
    again = list(zip(counts_of(shares, half, 3), counts_of(shares, half, 4)))
    found = profile(base, again, half)
    assert sum(item["questions"] for item in found.values()) == 4000
    for name in CLASSES:
        noise = 3 * math.sqrt(2 * 0.25 / half / max(1.0, found[name]["questions"]))
        assert abs(found[name]["change"]) < noise, name
    naive = profile([(one, one) for one, _ in base], again, half)
    assert naive["unsolved"]["change"] > 0.05


def test_two_evaluations_compared() -> None:
    before = {"k": 4, "counts": [(0, 0), (1, 0), (2, 2), (0, 1)]}
    after = {"k": 4, "counts": [(0, 1), (0, 0), (2, 1), (2, 2)]}
    found = compared(before, after)
    assert found["change_unsolved"] == pytest.approx((0.5 + 0.5) / 2)
    assert (found["change_middle"], found["change_easy"]) == (0.0, -0.5)
    assert found["questions_unsolved"] == 2
    assert (found["gained"], found["lost"]) == (0.25, 0.25)
    assert all(value == 0 for name, value in compared(before, before).items() if not name.startswith("questions"))
