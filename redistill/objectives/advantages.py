"""Advantages from the rewards of a group (the episodes of one prompt): one 1-D tensor a group, of any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redistill.errors import UserError, nearest

STD_KINDS = ("none", "population", "sample")
"""Divide by nothing (SDPO's baseline), by the deviation over G (rlad), or by that over G - 1 (guide, kepo)."""


def zero_variance(rewards: Sequence[Tensor] | Tensor) -> Tensor:
    """Whether all rewards of a group are equal, [groups] bool. Compared, not computed: a mean has rounding.

    Such a group (or a group of one, or of none) says nothing about its episodes. Raises ValueError for a group that is
    not a vector.
    """
    for group in rewards:
        if group.dim() != 1:
            raise ValueError(f"the rewards of a group are one vector, got shape {tuple(group.shape)}")
    return torch.tensor([bool((group[1:] == group[:-1]).all()) for group in rewards], dtype=torch.bool)


def group_advantages(rewards: Sequence[Tensor] | Tensor, *, std: str = "none", eps: float = 1e-6) -> list[Tensor]:
    """(r - mean) / (std + eps) within each group (GRPO, arXiv 2402.03300): a vector for each group (row, if 2-D).

    `eps` is added to the deviation, after the root; with std "none" neither is used. A group whose rewards are all
    equal (or a group of one) has exactly zero advantage: the rounding of its mean is not divided by eps. Raises
    UserError for an unknown std or a negative eps.
    """
    if std not in STD_KINDS:
        raise UserError(f"advantage std {std!r} is unknown{nearest(std, STD_KINDS)}")
    if not eps >= 0:
        raise UserError(f"advantage eps needs a number of 0 or more, got {eps:g}")
    advantages = []
    for group, flat in zip(rewards, zero_variance(rewards).tolist(), strict=True):
        group = group.detach() if group.is_floating_point() else group.to(torch.get_default_dtype())
        centred = torch.zeros_like(group) if flat else group - group.mean()
        if std != "none" and not flat:
            centred = centred / (group.std(correction=int(std == "sample")) + eps)
        advantages.append(centred)
    return advantages


def leave_one_out(rewards: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """r_i - mean of the others of its group (RLOO, arXiv 2402.14740) = G / (G-1) (r_i - mean), a vector a group.

    Zero for a group whose rewards are all equal. Raises UserError for a group of one, which has no others.
    """
    advantages = []
    for group, centred in zip(rewards, group_advantages(rewards), strict=True):
        if group.numel() == 1:
            raise UserError("leave-one-out advantages need groups of 2 or more, got a group of 1")
        advantages.append(centred * (group.numel() / max(group.numel() - 1, 1)))
    return advantages
