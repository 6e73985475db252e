"""Entropy of the student at each step."""

from __future__ import annotations

import torch
from torch import Tensor

from redistill.objectives.divergence import with_slope


def entropy(logp_NV: Tensor) -> Tensor:
    """Shannon entropy -sum p log p per step, in nats: normalised log-probs [N, V] -> [N], between 0 and ln V.

    -inf is a legal log-prob (0 log 0 = 0, without gradient). Gradient flows; one tensor [N, V] waits for backward.
    """
    with torch.no_grad():
        p_NV = logp_NV.exp()
        entry_NV = torch.where(p_NV == 0, 0.0, -p_NV * logp_NV)
        value_N = entry_NV.sum(-1)
    return with_slope(logp_NV, value_N, entry_NV.sub_(p_NV))
