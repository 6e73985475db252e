"""Calibration and selective risk against loops written from the definitions, and scikit-learn's log loss."""

from __future__ import annotations

import numpy as np
import pytest
from redistill.evaluation.calibration import (
    aurc,
    auroc,
    brier,
    calibration_error,
    excess_aurc,
    nll,
    stated_confidence,
    sure_when_right,
)

RNG = np.random.default_rng(0)
CONFIDENCE = RNG.uniform(0.1, 1.0, 203)
RIGHT = RNG.uniform(size=203) < CONFIDENCE**2


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_by_its_definition(bins):
    total = 0.0
    for b in range(bins):
        inside = [(c, r) for c, r in zip(CONFIDENCE, RIGHT, strict=True) if b / bins < c <= (b + 1) / bins]
        if inside:
            gap = np.mean([r for _, r in inside]) - np.mean([c for c, _ in inside])
            total += abs(gap) * len(inside) / len(CONFIDENCE)
    assert calibration_error(CONFIDENCE, RIGHT, bins) == pytest.approx(total)


def test_bins_hold_their_upper_edge_and_a_certain_prediction_has_one():
    assert calibration_error(np.array([0.5, 0.4]), np.array([1, 0]), 2) == pytest.approx(abs(1 - 0.9) / 2)
    assert calibration_error(np.array([0.5, 0.6]), np.array([1, 0]), 2) == pytest.approx((0.5 + 0.6) / 2)
    assert calibration_error(np.array([1.0]), np.array([1]), 15) == 0.0


def test_aurc_by_its_definition():
    pairs = sorted(zip(CONFIDENCE, RIGHT, strict=True), key=lambda pair: -pair[0])
    risks = [sum(1 - r for _, r in pairs[:k]) / k for k in range(1, len(pairs) + 1)]
    assert aurc(CONFIDENCE, RIGHT) == pytest.approx(np.mean(risks))


def test_a_perfect_order_has_no_excess():
    right = np.array([1] * 20 + [0] * 5)
    assert excess_aurc(np.linspace(1, 0, 25), right) == pytest.approx(0.0, abs=1e-12)
    assert excess_aurc(np.linspace(0, 1, 25), right) > 0.1
    # One error in four, last: risks 0, 0, 0, 1/4.
    assert aurc(np.array([4, 3, 2, 1]), np.array([1, 1, 1, 0])) == pytest.approx(1 / 16)


def test_nll_is_scikit_learns_log_loss():
    log_loss = pytest.importorskip("sklearn.metrics").log_loss
    logits = RNG.normal(size=(50, 4))
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    label = RNG.integers(0, 4, 50)
    assert nll(logp, label) == pytest.approx(log_loss(label, np.exp(logp), labels=range(4)))


def test_caopd_check_4_saturated_confidence_and_perfect_levels() -> None:
    right = np.array([1, 1, 0, 0, 0])
    told = stated_confidence(np.ones(5), right)
    assert (told["sure_when_right"], told["auroc"]) == (0.0, 0.5)
    for name in ("overconfidence", "ece", "brier"):
        assert told[name] == pytest.approx(0.6)
    assert sure_when_right(np.array([0.9, 0.9, 0.1, 0.1, 0.1]), right) == 1.0
    assert sure_when_right(np.array([0.9, 0.1, 0.1, 0.5, 0.1]), right) == pytest.approx(3 / 6)
    assert sure_when_right(np.array([0.3, 0.7]), np.array([1, 1])) == 0.0


def test_auroc_is_scikit_learns_ties_included() -> None:
    roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score
    coarse = np.round(CONFIDENCE, 1)  # many ties
    assert auroc(coarse, RIGHT) == pytest.approx(roc_auc_score(RIGHT, coarse))
    assert auroc(coarse, np.ones(203)) == auroc(coarse, np.zeros(203)) == 0.5


def test_caopd_check_6_the_best_constant_under_brier_is_the_success_rate() -> None:
    right = np.array([1, 0, 0, 1, 0, 0, 0, 0])
    grid = np.linspace(0, 1, 101)
    values = [brier(np.full(8, c), right) for c in grid]
    assert grid[int(np.argmin(values))] == pytest.approx(0.25)
    assert min(values) == pytest.approx(0.25 * 0.75)
