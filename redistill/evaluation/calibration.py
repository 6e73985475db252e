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
