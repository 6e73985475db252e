"""What an experiment is: arms with equal budgets, one tuning grid for all of them, a comparison and its controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way to spend the budget. Arms with a `tuned_as` take the winning grid value of that arm."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tuned_as: str | None = None


@dataclass(frozen=True)
class Experiment:
    """A paper's direction against its own baseline, as data. `compare` = (method's arm, baseline's arm)."""

    slug: str
    claim: str
    metric: str
    base: Mapping[str, Any]
    """Run settings common to all arms (model, task, budget, evaluation)."""
    arms: Mapping[str, Arm]
    compare: tuple[str, str]
    controls: Mapping[str, tuple[str, str]]
    """Further comparisons. "arm:measure" stands for another number of that arm's final evaluation than the metric."""
    grid: Mapping[str, Sequence[Any]]
    """One tuned key and its values, the same for every arm without `tuned_as`."""
    budget: str
    quick: Mapping[str, Any]
    """Settings of the smaller version."""
    tuning_seed: int = 1000
    """The grid is searched on this seed, which is never one of the reported ones."""
    derive: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, float]] | None = None
    """Numbers that a run's evaluation after training has only beside the one before it: (before, after) -> numbers."""
    traces: Sequence[str] = ()
    """Further numbers of the evaluations that the evidence keeps as curves and plots."""
    tuning: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ while tuning (fewer steps)."""
