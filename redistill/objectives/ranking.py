"""Rankings: the student's own candidates, ordered by a teacher."""

from __future__ import annotations

import torch
from torch import Tensor


def plackett_luce(*, student: Tensor, teacher: Tensor, k: int, reverse: bool = False) -> Tensor:
    """-log P of the teacher's order of the student's k likeliest outcomes, per step: scores [N, V] -> [N].

    P(pi) = prod_j exp(z_pi(j)) / sum_{l >= j} exp(z_pi(l)), z the student's scores, pi its candidates with the teacher's
    best first (TSD-KD, arXiv 2603.13260). Scores may be logits or log-probs: a constant per step changes nothing. At
    least 0; 0 for k = 1. `reverse` is the released code's sum over l <= j, the probability of the order upside down.
    Gradient flows to the student's candidates; the choice and the order are constants. k beyond V means V.
    """
    with torch.no_grad():
        index_NK = student.topk(min(k, student.shape[-1]), dim=-1).indices
        order_NK = teacher.gather(-1, index_NK).argsort(dim=-1, descending=True, stable=True)
        index_NK = index_NK.gather(-1, order_NK)
    z_NK = student.gather(-1, index_NK)
    rest_NK = z_NK.logcumsumexp(-1) if reverse else z_NK.flip(-1).logcumsumexp(-1).flip(-1)
    return (rest_NK - z_NK).sum(-1)
