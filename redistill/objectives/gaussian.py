"""Actions drawn from a Gaussian with independent entries: log-probs, entropy, KL and distances to a proposed action.

Suffixes: N steps, D entries of an action, S samples of a teacher. All sums over D are closed forms, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from redistill.errors import UserError, nearest

LOG_2PI = math.log(2.0 * math.pi)
ERRORS = ("mse", "l1", "bc")


def log_prob(action_ND: Tensor, mean_ND: Tensor, log_std_ND: Tensor) -> Tensor:
    """log N(action; mean, std^2), the sum over D [N]; log_std may be [D] or [N, D]."""
    z_ND = (action_ND - mean_ND) * (-log_std_ND).exp()
    return (-0.5 * z_ND.square() - log_std_ND - 0.5 * LOG_2PI).sum(-1)


def entropy(log_std_ND: Tensor) -> Tensor:
    """Differential entropy, the sum over D [N]; below 0 for narrow ones."""
    return (log_std_ND + 0.5 * (1.0 + LOG_2PI)).sum(-1)


def kl(*, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """KL(first || second) [N] of two (mean, log_std): sum of log(s2/s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2."""
    (m1, l1), (m2, l2) = first, second
    return (l2 - l1 + 0.5 * ((2.0 * (l1 - l2)).exp() + ((m1 - m2) * (-l2).exp()).square() - 1.0)).sum(-1)


def mixed(means: Sequence[Tensor], log_stds: Sequence[Tensor], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(mean, log_std) of the Gaussian whose log is the mixture sum of share * log N: precisions add up. Shares sum to 1."""
    if len(means) == 1:
        return means[0], log_stds[0]
    precisions = [share * (-2.0 * log_std).exp() for share, log_std in zip(shares, log_stds, strict=True)]
    precision = torch.stack(precisions).sum(0)
    mean = torch.stack([p * m for p, m in zip(precisions, means, strict=True)]).sum(0) / precision
    return mean, -0.5 * precision.log()


def imitation_error(kind: str, proposed_NSD: Tensor, mean_ND: Tensor, log_std_ND: Tensor) -> Tensor:
    """How far a Gaussian is from the actions that a teacher proposes, the mean over its S samples [N].

    "mse" and "l1": mean over D of (mean - a)^2 and |mean - a|, which leave the deviation alone (RPD, arXiv 2503.05833; the
    mean is what its code takes). "bc": -log N(a; mean, std^2), a sum over D. No gradient to the proposals. Raises UserError
    for another kind.
    """
    if kind not in ERRORS:
        raise UserError(f"imitation loss {kind!r} is unknown{nearest(kind, ERRORS)}")
    gap_NSD = mean_ND[:, None] - proposed_NSD.detach()
    if kind == "mse":
        return gap_NSD.square().mean((1, 2))
    if kind == "l1":
        return gap_NSD.abs().mean((1, 2))
    return -log_prob(proposed_NSD.detach(), mean_ND[:, None], log_std_ND.expand_as(mean_ND)[:, None]).mean(1)
