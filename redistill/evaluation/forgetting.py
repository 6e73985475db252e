"""Forgetting: what a model has lost (or won) on tasks that it was not trained on, against the model that it began as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redistill.evaluation.capability import compared
from redistill.evaluation.intervals import paired_difference


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Two evaluations of the same prompts: the main metric `before` and `after`, and their difference with its paired interval
    over prompts; with samples also what became of questions of each difficulty."""
    gap = paired_difference(after["outcomes"], before["outcomes"])
    found: dict[str, Any] = {
        "metric": after["metric"], "before": before[before["metric"]], "after": after[after["metric"]], "difference": gap.estimate,
        "low": gap.low, "high": gap.high, "prompts": len(after["outcomes"]),
    }  # fmt: skip
    if "counts" in before and "counts" in after and before["k"] == after["k"] and before["k"] > 1:
        found |= {name: after[name] - before[name] for name in ("avg_at_k", "pass_at_k")}
        found |= compared(before, after)
    return found
