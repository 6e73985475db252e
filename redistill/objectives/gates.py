"""Weights and gates per step that a method computes before the update, from quantities without gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from redistill.errors import UserError


def entropy_weights(entropy_N: Tensor, beta: float, mask_N: Tensor) -> Tensor:
    """exp(-beta H) over the steps of the mask, divided by its mean over them (SRPO, arXiv 2604.02288): [N] -> [N].

    The mean weight of the masked steps is exactly 1 (to rounding), so a confident teacher weighs more and the size of the
    loss stays; 0 outside of the mask. `entropy_N` in nats, `beta` 0 or more (0 weighs all alike). An empty mask gives
    zeros. Raises UserError for a negative beta.
    """
    if not beta >= 0:
        raise UserError(f"beta of entropy weights needs a number of 0 or more, got {beta:g}")
    weight_N = torch.zeros_like(entropy_N)
    if bool(mask_N.any()):
        inside_n = entropy_N.detach()[mask_N]
        raw_n = torch.exp(-beta * (inside_n - inside_n.min()))  # the shift cancels in the quotient and avoids underflow
        weight_N[mask_N] = raw_n / raw_n.mean()
    return weight_N
