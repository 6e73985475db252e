"""Calibration and selective prediction of a classifier, on numpy arrays. Results are shares or nats, not percent."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def nll(logp_NV: Array, label_N: Array) -> float:
    """Mean negative log-likelihood of the labels, nats."""
    return float(-logp_NV[np.arange(len(label_N)), label_N].mean())


def calibration_error(confidence_N: Array, right_N: Array, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599, eq. 3): the mean over predictions of
    |accuracy - confidence| of their bin, with `bins` equal bins (low, high] of confidence; in [0, 1]."""
    bin_N = np.clip(np.ceil(np.asarray(confidence_N, dtype=np.float64) * bins).astype(int) - 1, 0, bins - 1)
    gap_B = np.bincount(bin_N, weights=np.asarray(right_N, dtype=np.float64) - confidence_N, minlength=bins)
    return float(np.abs(gap_B).sum() / len(bin_N))


def reliability(confidence_N: Array, right_N: Array, bins: int = 10) -> list[dict[str, float]]:
    """A reliability diagram (the bins of `calibration_error`, empty ones left out): `low`, `high`, mean `confidence`, `accuracy`
    and `count` of each."""
    confidence, right = np.asarray(confidence_N, dtype=np.float64), np.asarray(right_N, dtype=np.float64)
    bin_N = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        {
            "low": b / bins, "high": (b + 1) / bins, "confidence": float(confidence[bin_N == b].mean()),
            "accuracy": float(right[bin_N == b].mean()), "count": int((bin_N == b).sum()),
        }
        for b in range(bins) if (bin_N == b).any()
    ]  # fmt: skip


def brier(confidence_N: Array, right_N: Array) -> float:
    """Mean squared difference of confidence and correctness; in [0, 1], lowest at confidence = probability of being right."""
    return float(np.square(np.asarray(confidence_N, dtype=np.float64) - np.asarray(right_N, dtype=np.float64)).mean())


def sure_when_right(confidence_N: Array, right_N: Array) -> float:
    """The share of pairs of a right and a wrong prediction in which the right one is stated with more confidence (CaOPD's
    SPR, arXiv 2604.16830); a tie counts 0, and 0 where all are right or all wrong. In [0, 1]."""
    right = np.asarray(right_N, dtype=bool)
    confidence = np.asarray(confidence_N, dtype=np.float64)
    good_N, bad_N = confidence[right], confidence[~right]
    if not len(good_N) or not len(bad_N):
        return 0.0
    return float((good_N[:, None] > bad_N[None, :]).mean())


def auroc(confidence_N: Array, right_N: Array) -> float:
    """Area under the ROC curve of confidence as a sign of being right: `sure_when_right` with half the ties added; 0.5, the
    value of a confidence that says nothing, where all are right or all wrong. In [0, 1]."""
    right = np.asarray(right_N, dtype=bool)
    confidence = np.asarray(confidence_N, dtype=np.float64)
    good_N, bad_N = confidence[right], confidence[~right]
    if not len(good_N) or not len(bad_N):
        return 0.5
    return sure_when_right(confidence, right) + float((good_N[:, None] == bad_N[None, :]).mean()) / 2


def stated_confidence(confidence_N: Array, right_N: Array) -> dict[str, float]:
    """What an evaluation says of stated confidences: their mean (`stated`), `overconfidence` (mean confidence minus
    accuracy), `ece` (10 bins), `brier`, `sure_when_right` and `auroc`."""
    return {
        "stated": float(np.mean(confidence_N)), "overconfidence": float(np.mean(confidence_N) - np.mean(right_N)),
        "ece": calibration_error(confidence_N, right_N, bins=10),
        "brier": brier(confidence_N, right_N), "sure_when_right": sure_when_right(confidence_N, right_N),
        "auroc": auroc(confidence_N, right_N),
    }  # fmt: skip


def aurc(confidence_N: Array, right_N: Array) -> float:
    """Area under the risk-coverage curve (Geifman et al., arXiv 1805.08206): the mean over k of the error rate among
    the k most confident predictions; ties stay in the given order. In [0, 1]; tables often show 1,000 times this."""
    order_N = np.argsort(-np.asarray(confidence_N, dtype=np.float64), kind="stable")
    wrong_N = 1.0 - np.asarray(right_N, dtype=np.float64)[order_N]
    return float((np.cumsum(wrong_N) / np.arange(1, len(wrong_N) + 1)).mean())


def excess_aurc(confidence_N: Array, right_N: Array) -> float:
    """AURC minus that of the best order, in which all errors come last (the same paper, E-AURC)."""
    errors, count = int(len(right_N) - np.sum(right_N)), len(right_N)
    best = sum(j / (count - errors + j) for j in range(1, errors + 1)) / count
    return aurc(confidence_N, right_N) - best
