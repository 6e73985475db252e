"""Weighted likelihood: one loss for SFT (weight 1), REDI, CurioSFT, AMPO's off-policy part and warm-ups."""

from __future__ import annotations

from torch import Tensor


def weighted_nll(logp_N: Tensor, weight_N: Tensor | None = None) -> Tensor:
    """-w log p per step [N], from the log-probs of the steps taken and their weights (None: 1; negative is legal).

    The weight carries no gradient. A weight of exactly 0 gives a zero loss and gradient even where log p is -inf.
    """
    if weight_N is None:
        return -logp_N
    if weight_N.shape != logp_N.shape:
        raise ValueError(f"weights {tuple(weight_N.shape)} and log-probs {tuple(logp_N.shape)} differ in shape")
    weight_N = weight_N.detach().to(logp_N.dtype)
    return -weight_N * logp_N.masked_fill(weight_N == 0, 0.0)
