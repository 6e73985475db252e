"""What finished runs say of their methods: scores, areas, differences and costs with intervals. Pure: numbers in, numbers out.

Legend of suffixes: S seeds, P held-out prompts, K evaluations of a run or places on a grid, B bootstrap draws. All methods have
the same seeds and the same prompts, so every difference is paired over both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redistill.core.budget import Budget
from redistill.evaluation.intervals import Array, Interval, crossed_interval, crossed_weights

COSTS = ("updates", "rollouts", "tokens", "seconds")
DRAWS = 1000


@dataclass(frozen=True)
class Point:
    """One evaluation of a run: what the run had spent by then, and the score of each held-out prompt [P] (one number, the
    metric, where a domain does not tell them apart)."""

    label: str
    spent: Mapping[str, float]
    score_P: Array


@dataclass(frozen=True)
class Ended:
    """A run that has ended: its evaluations in order, and all that it spent."""

    seed: int
    points: Sequence[Point]
    spent: Mapping[str, float]
    folder: str = ""


@dataclass(frozen=True)
class Curve:
    """A run's scores against the budget: places [K], ascending, and scores [K, P]."""

    at_K: Array
    score_KP: Array

    def read(self, at: float) -> Array:
        """Scores [P] at a place: linear between evaluations; before the first and after the last as there."""
        right = int(np.searchsorted(self.at_K, at, side="right"))
        if right == 0:
            return np.asarray(self.score_KP[0])
        if right == len(self.at_K):
            return np.asarray(self.score_KP[-1])
        low, high = self.at_K[right - 1], self.at_K[right]
        share = (at - low) / (high - low)
        return np.asarray((1 - share) * self.score_KP[right - 1] + share * self.score_KP[right])

    def area(self, until: float) -> Array:
        """Mean score [P] from 0 to `until` (trapezium rule)."""
        inner = [float(at) for at in self.at_K if 0 < at < until]
        knots_K = np.array([0.0, *inner, until])
        height_KP = np.stack([self.read(at) for at in knots_K])
        return np.asarray(np.trapezoid(height_KP, knots_K, axis=0) / until)


def curve_of(run: Ended, unit: str) -> Curve:
    """A run's curve in a unit of the budget; of two evaluations at one place the later counts."""
    at = {float(point.spent[unit]): point.score_P for point in run.points}
    places = sorted(at)
    return Curve(np.array(places), np.stack([at[place] for place in places]))


def verdict(difference: Interval, seeds: int) -> str:
    """What the interval says: better, worse or not distinguishable; of one seed it is said of that seed only."""
    word = "better" if difference.low > 0 else "worse" if difference.high < 0 else "not distinguishable"
    return word if seeds > 1 else f"{word} (on this seed)"


def compared(arms: Mapping[str, Sequence[Ended]], budget: Budget, parts: int) -> dict[str, dict[str, Any]]:
    """Each method's facts by name; the first is the baseline. See docs/compare.md for what the keys mean."""
    curves = {name: [curve_of(run, budget.unit) for run in runs] for name, runs in arms.items()}
    grid = [budget.amount * k / parts for k in range(parts + 1)]
    base = next(iter(arms))
    final = {name: np.stack([curve.score_KP[-1] for curve in own]) for name, own in curves.items()}
    area = {name: np.stack([curve.area(budget.amount) for curve in own]) for name, own in curves.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, runs in arms.items():
        own = curves[name]
        found[name] = {
            "final": interval(final[name]), "per_seed": final[name].mean(axis=1).tolist(), "area": interval(area[name]),
            "difference": None if name == base else difference(final[name], final[base]),
            "area_difference": None if name == base else difference(area[name], area[base]),
            "reach": reach(own, curves[base], budget),
            "cost": {unit: [run.spent.get(unit, 0.0) for run in runs] for unit in COSTS},
            "curve": [{"at": at, **interval(np.stack([curve.read(at) for curve in own]))} for at in grid],
            "points": [
                [{"label": p.label, "score": float(p.score_P.mean()), **{u: p.spent[u] for u in COSTS}} for p in run.points]
                for run in runs
            ],
        }  # fmt: skip
    return found


def interval(values_SP: Array) -> dict[str, float]:
    """Estimate and bounds of the mean."""
    found = crossed_interval(values_SP)
    return {"estimate": found.estimate, "low": found.low, "high": found.high}


def difference(one_SP: Array, other_SP: Array) -> dict[str, Any]:
    """one - other over the same seeds and prompts: the interval, the word, the difference of each seed, and beside it the
    percentile bootstrap over seeds and prompts, which is too narrow for few seeds and decides nothing."""
    gap_SP = one_SP - other_SP
    found = crossed_interval(gap_SP)
    weight_BS, weight_BP = crossed_weights(len(gap_SP), gap_SP.shape[1], DRAWS)
    low, high = np.quantile(((weight_BS @ gap_SP) * weight_BP).sum(axis=1), [0.025, 0.975])
    return {
        "estimate": found.estimate, "low": found.low, "high": found.high, "verdict": verdict(found, len(gap_SP)),
        "per_seed": gap_SP.mean(axis=1).tolist(), "bootstrap": [float(low), float(high)],
    }  # fmt: skip


def reach(own: Sequence[Curve], base: Sequence[Curve], budget: Budget) -> dict[str, Any]:
    """How much of the budget a method needs until its mean curve first has the baseline's final score.

    `target` is that score, `estimate` the amount (None: not within the budget), `low` and `high` the 95% percentile
    bootstrap over seeds and prompts (None: not reached there), `reached` the share of draws that reach it.
    """
    places = sorted({0.0, budget.amount, *(float(at) for curve in own for at in curve.at_K)})
    final_SP = np.stack([curve.score_KP[-1] for curve in base])
    weight_BS, weight_BP = crossed_weights(len(base), final_SP.shape[1], DRAWS)
    # The first "draw" is the data themselves: it gives the estimate.
    weight_BS = np.vstack([np.full(len(base), 1 / len(base)), weight_BS])
    weight_BP = np.vstack([np.full(final_SP.shape[1], 1 / final_SP.shape[1]), weight_BP])
    target_B = ((weight_BS @ final_SP) * weight_BP).sum(axis=1)
    score_KB = np.stack([
        ((weight_BS @ np.stack([curve.read(at) for curve in own])) * weight_BP).sum(axis=1) for at in places
    ])  # fmt: skip
    at_B = np.array([first_at(places, score_KB[:, b], target_B[b]) for b in range(len(target_B))])
    low, high = np.quantile(at_B[1:], [0.025, 0.975], method="inverted_cdf")
    return {
        "target": float(target_B[0]), "estimate": _or_none(at_B[0]), "low": _or_none(low), "high": _or_none(high),
        "reached": float(np.isfinite(at_B[1:]).mean()),
    }  # fmt: skip


def first_at(places: Sequence[float], score_K: Array, target: float) -> float:
    """The first place at which a curve, linear between places, is at the target or above; infinity where it never is. A
    hair's breadth below counts as there: a baseline must reach its own final score."""
    near = np.asarray(score_K) >= target - 1e-12
    if not near.any():
        return float("inf")
    k = int(np.argmax(near))
    if k == 0:
        return float(places[0])
    share = (target - score_K[k - 1]) / (score_K[k] - score_K[k - 1])
    return float(places[k - 1] + min(1.0, share) * (places[k] - places[k - 1]))


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
