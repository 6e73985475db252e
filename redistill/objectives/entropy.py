"""Entropy of the student at each step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redistill.objectives.divergence import with_slope


def entropy(logp_NV: Tensor) -> Tensor:
    """Shannon entropy -sum p log p per step, in nats: normalised log-probs [N, V] -> [N], between 0 and ln V.

    -inf is a legal log-prob (0 log 0 = 0, without gradient). Gradient flows; one tensor [N, V] waits for backward.
    """
    value_N, slope = entropy_and_slope(logp_NV.detach())
    return with_slope(logp_NV, value_N, slope) if torch.is_grad_enabled() else value_N


@torch.no_grad()
def entropy_and_slope(logp_NV: Tensor, p_NV: Tensor | None = None) -> tuple[Tensor, Callable[[], Tensor]]:
    """(the entropy [N], how to get its derivative with respect to the log-probs [N, V]); `p_NV` where it is known."""
    q_NV = logp_NV.exp() if p_NV is None else p_NV
    entry_NV = (q_NV * logp_NV).neg_()
    value_N = entry_NV.sum(-1)
    if not bool(value_N.isfinite().all()):
        entry_NV.masked_fill_(q_NV == 0, 0.0)
        value_N = entry_NV.sum(-1)
    return value_N, lambda: entry_NV - q_NV
