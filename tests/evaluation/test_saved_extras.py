"""What `redistill eval` adds: likelihood's calibration, pass@k by difficulty, diversity, forgetting; on any saved model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redistill.cli import main
from redistill.core import rng
from redistill.errors import UserError
from redistill.evaluation.calibration import auroc, brier, reliability
from redistill.evaluation.diversity import distinct, diversity, overlap, self_overlap
from redistill.evaluation.forgetting import difference
from redistill.evaluation.intervals import paired_difference
from redistill.evaluation.saved import evaluate_saved

FAST = {"max_new_tokens": "16", "utility": "false", "sample_batch": "256"}


# --- diversity --------------------------------------------------------------------------------------------------------
def test_equal_samples_have_no_diversity_and_disjoint_ones_all() -> None:
    same, apart = [[(1, 2, 3)] * 4], [[(1, 2), (3, 4), (5, 6)]]
    assert distinct(same, 1) == pytest.approx(3 / 12)
    assert (distinct(apart, 1), self_overlap(apart), self_overlap(same)) == (1.0, 0.0, 1.0)
    found = diversity([["a", "a", "b", "b"]], [[(1,), (1,), (2,), (2,)]])
    assert found["distinct_answers"] == 0.5
    assert found["self_overlap"] == pytest.approx(2 / 6)


def test_overlap_is_symmetric_and_by_hand() -> None:
    a, b = (1, 2, 3), (1, 2, 4)
    assert overlap(a, b) == overlap(b, a) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert overlap((), ()) == 1.0
    assert overlap((1,), ()) == 0.0


# --- calibration ------------------------------------------------------------------------------------------------------
def test_calibration_agrees_with_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    calibration = pytest.importorskip("sklearn.calibration")
    confidence = np.round(rng.uniform("confidence", range(500)), 2)
    right = (rng.uniform("right", range(500)) < confidence**2).astype(int)
    assert auroc(confidence, right) == pytest.approx(sklearn.roc_auc_score(right, confidence))
    assert brier(confidence, right) == pytest.approx(sklearn.brier_score_loss(right, confidence))
    inside = np.where(
        np.isclose(confidence * 10 % 1, 0), confidence - 1e-9, confidence
    )  # scikit-learn's bins are closed below
    accuracy, mean = calibration.calibration_curve(right, np.clip(inside, 0, 1), n_bins=10)
    bins = reliability(inside, right)
    assert [one["accuracy"] for one in bins] == pytest.approx(list(accuracy))
    assert [one["confidence"] for one in bins] == pytest.approx(list(mean))
    assert sum(one["count"] for one in bins) == 500


# --- forgetting -------------------------------------------------------------------------------------------------------
def test_difference_is_paired_over_prompts() -> None:
    before = {"metric": "accuracy", "accuracy": 0.5, "outcomes": [0, 1, 1, 0]}
    after = {"metric": "accuracy", "accuracy": 0.75, "outcomes": [1, 1, 1, 0]}
    found, gap = difference(before, after), paired_difference([1, 1, 1, 0], [0, 1, 1, 0])
    assert (found["difference"], found["low"], found["high"]) == (gap.estimate, gap.low, gap.high)
    assert (found["before"], found["after"], found["prompts"]) == (0.5, 0.75, 4)


def test_an_expert_has_forgotten_what_another_knows() -> None:
    """pocket-pairs can do sums of two and has lost those of three."""
    result = evaluate_saved("pocket-pairs", "sums:terms=2", 0, 40, FAST, ["sums:terms=3"], "pocket")
    won, lost = result["against"]["sums:terms=2"], result["against"]["sums:terms=3"]
    assert won["low"] > 0.5
    assert lost["high"] < 0
    assert won["after"] == result["accuracy"]


@pytest.fixture(scope="module")
def sampled() -> dict[str, Any]:
    return evaluate_saved("pocket", "sums", 8, 40, FAST, (), "pocket-adept")


def test_details_of_a_saved_model(sampled: dict[str, Any]) -> None:
    assert sampled["pass_curve"]["1"] == pytest.approx(sampled["avg_at_k"])
    assert sampled["pass_curve"]["8"] == pytest.approx(sampled["pass_at_k"])
    assert sum(one["questions"] for one in sampled["by_difficulty"].values()) == 40
    assert sampled["likelihood_auroc"] > 0.6, "pocket is surer where it is right"
    assert 0 < sampled["distinct_answers"] <= 1
    gap = sampled["against"]["sums"]
    assert gap["avg_at_k"] < 0, "pocket-adept is better"
    assert sum(value for name, value in gap.items() if name.startswith("questions_")) == 40


def test_json_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [word for key, value in FAST.items() for word in ("--set", f"{key}={value}")]
    page = tmp_path / "page.html"
    words = ["eval", "pocket", "--task", "sums", "-k", "4", "--prompts", "10", "--html", str(page), "--json", *sets]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"pass_curve", "reliability_likelihood", "self_overlap", "likelihood_ece"} <= set(found)
    text = page.read_text()
    assert "Reliability of the probability of the answer" in text
    assert "pass@k" in text


def test_a_comparison_without_a_base_is_refused() -> None:
    with pytest.raises(UserError, match="--also needs --base"):
        evaluate_saved("pocket", "sums", 0, 4, FAST, ["sums:terms=2"])
