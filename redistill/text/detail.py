"""What `redistill eval` says beyond a run's own evaluations: how far likelihood can be trusted, how diverse samples are, which
questions are solved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from redistill.evaluation.calibration import auroc, brier, calibration_error, reliability
from redistill.evaluation.capability import CLASSES, curve, difficulty
from redistill.evaluation.diversity import diversity
from redistill.text.sampling import Sampled
from redistill.text.turns import Played


def likelihood(answers: Sequence[Sampled | Played], outcomes: Sequence[int]) -> dict[str, Any]:
    """The probability of each greedy answer as its confidence: `likelihood` (mean), its `_auroc`, `_ece` (10 bins), `_brier`, and the
    bins of a reliability diagram."""
    confidence = np.exp([float(one.logp_T.double().sum()) for one in answers])
    right = np.asarray(outcomes)
    return {
        "likelihood": float(confidence.mean()), "likelihood_auroc": auroc(confidence, right),
        "likelihood_ece": calibration_error(confidence, right, bins=10), "likelihood_brier": brier(confidence, right),
        "reliability_likelihood": reliability(confidence, right),
    }  # fmt: skip


def samples(groups: Sequence[Sequence[Sampled | Played]], marks: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Of k samples of each prompt and whether each is right: `pass_curve` (k -> unbiased pass@k), diversity, and by difficulty
    (told by the first half of the samples, measured on the second) `questions`, `accuracy` and `solved`."""
    k = len(marks[0])
    counts = [sum(row) for row in marks]
    ids = [[_ids(one) for one in group] for group in groups]
    found: dict[str, Any] = {"pass_curve": {str(n): value for n, value in curve(counts, k).items()}}
    found |= diversity([[one.text for one in group] for group in groups], ids)
    if k > 1:
        half = k // 2
        by_class: dict[str, list[Sequence[int]]] = {name: [] for name in CLASSES}
        for row in marks:
            by_class[difficulty(sum(row[:half]), half)].append(row[half : 2 * half])
        found["by_difficulty"] = {
            name: {
                "questions": len(rows), "accuracy": sum(map(sum, rows)) / (half * len(rows)),
                "solved": sum(any(row) for row in rows) / len(rows),
            }
            for name, rows in by_class.items() if rows
        }  # fmt: skip
    return found


def _ids(one: Sampled | Played) -> tuple[int, ...]:
    return one.ids if isinstance(one, Sampled) else one.trajectory.ids
