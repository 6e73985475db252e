"""How much a model's samples differ: distinct answers, distinct n-grams, and how alike the samples of a prompt are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

MOST = 16
"""Samples of a prompt that are compared in pairs: the number of pairs grows with its square."""


def ngrams(tokens: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
    """The n-grams of a sequence with their counts."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def distinct(groups: Sequence[Sequence[Sequence[int]]], n: int) -> float:
    """Distinct-n (Li et al., arXiv 1510.03055): different n-grams per n-gram among the samples of a prompt, mean over prompts;
    1 where none occurs twice."""
    shares = []
    for group in groups:
        seen: Counter[tuple[int, ...]] = sum((ngrams(one, n) for one in group), Counter())
        if seen:
            shares.append(len(seen) / seen.total())
    return fmean(shares) if shares else 1.0


def overlap(one: Sequence[int], other: Sequence[int], longest: int = 4) -> float:
    """How alike two sequences are: the mean over n = 1..`longest` (no longer than the shorter) of 2 |common n-grams| / |all
    n-grams|. 1 for equals, 0 without a common token; symmetric, unlike BLEU."""
    shares = []
    for n in range(1, min(longest, len(one), len(other)) + 1):
        left, right = ngrams(one, n), ngrams(other, n)
        shares.append(2 * (left & right).total() / (left.total() + right.total()))
    return fmean(shares) if shares else float(tuple(one) == tuple(other))


def self_overlap(groups: Sequence[Sequence[Sequence[int]]]) -> float:
    """Mean `overlap` of pairs of samples of a prompt (the first MOST of them), in the manner of self-BLEU (Zhu et al., arXiv
    1802.01886); 1 where every prompt has one answer. Groups of fewer than two are left out."""
    means = [fmean(overlap(a, b) for a, b in combinations(group[:MOST], 2)) for group in groups if len(group) > 1]
    return fmean(means) if means else 1.0


def diversity(texts: Sequence[Sequence[str]], ids: Sequence[Sequence[Sequence[int]]]) -> dict[str, float]:
    """Of the samples of each prompt, as texts and as token ids: `distinct_answers` (share of different texts), `distinct_1`,
    `distinct_2`, `distinct_3` and `self_overlap`, means over prompts."""
    return {
        "distinct_answers": fmean(len(set(group)) / len(group) for group in texts),
        **{f"distinct_{n}": distinct(ids, n) for n in (1, 2, 3)},
        "self_overlap": self_overlap(ids),
    }
