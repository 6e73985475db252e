"""Accuracy and capability apart, by difficulty (arXiv 2505.14216). Counts are right answers of a question among its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redistill.evaluation.intervals import pass_at_k

EDGES = (0.0, 0.25, 0.75, 1.0)
CLASSES = ("unsolved", "hard", "middle", "easy")
"""Difficulty of a question for the base model by its share of right samples: 0, (0, 1/4], (1/4, 3/4], (3/4, 1]."""


def accuracy(counts: Sequence[int], samples: int) -> float:
    """Acc: the mean share of right samples."""
    return sum(counts) / (samples * len(counts))


def capability(counts: Sequence[int], samples: int, k: int) -> float:
    """Cap_k by the unbiased estimator; at k = samples it is the share of questions with a right sample."""
    return sum(pass_at_k(count, samples, k) for count in counts) / len(counts)


def curve(counts: Sequence[int], samples: int) -> dict[int, float]:
    """Cap_k at k = 1, 2, 4, ... and at all samples."""
    powers = [2**i for i in range(samples.bit_length()) if 2**i < samples]
    return {k: capability(counts, samples, k) for k in [*powers, samples]}


def unsolved_bound(samples: int, doubt: float = 0.05) -> float:
    """The success probability that a question without a right answer among so many samples is below, at confidence 1 - doubt."""
    return float(1.0 - doubt ** (1.0 / samples))


def difficulty(count: int, samples: int) -> str:
    """The class of a question with so many right samples of the base model."""
    share = count / samples
    return next(name for name, edge in zip(CLASSES, EDGES) if share <= edge)


def profile(
    base: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]], half: int
) -> dict[str, dict[str, float]]:
    """By class: how many `questions`, and the mean `change` of their success share from the base model to another.

    Counts come in two halves of `half` samples: the base's first half tells the class, its second half is compared with the other
    model's second half. Were class and change told by the same samples, easy questions would seem to get worse and hard ones better
    (regression to the mean)."""
    found: dict[str, list[float]] = {name: [] for name in CLASSES}
    for (told, before), (_, now) in zip(base, after, strict=True):
        found[difficulty(told, half)].append((now - before) / half)
    return {
        name: {"questions": float(len(changes)), "change": sum(changes) / len(changes) if changes else 0.0}
        for name, changes in found.items()
    }


def transitions(base: Sequence[int], after: Sequence[int], samples: int) -> list[list[int]]:
    """Questions by class before (row) and after (column), in the order of CLASSES."""
    table = [[0] * len(CLASSES) for _ in CLASSES]
    for one, other in zip(base, after, strict=True):
        table[CLASSES.index(difficulty(one, samples))][CLASSES.index(difficulty(other, samples))] += 1
    return table


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """What two evaluations with `counts` (pairs of halves) say: `change_<class>`, `questions_<class>`, and the questions that became
    solved or unsolved (`gained`, `lost`, shares of all)."""
    base, now, half = before["counts"], after["counts"], before["k"] // 2
    found = profile(base, now, half)
    solved = [(sum(one) > 0, sum(other) > 0) for one, other in zip(base, now, strict=True)]
    return {
        **{f"change_{name}": item["change"] for name, item in found.items()},
        **{f"questions_{name}": item["questions"] for name, item in found.items()},
        "gained": sum(new and not old for old, new in solved) / len(solved),
        "lost": sum(old and not new for old, new in solved) / len(solved),
    }
