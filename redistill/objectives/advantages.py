"""Advantages from the rewards of a group: the episodes of one prompt. One group is one 1-D tensor; groups may differ in size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redistill.errors import UserError, nearest

STD_KINDS = ("none", "population", "sample")
"""Divide by nothing (Dr. GRPO, SDPO's baseline), by the deviation over G (rlad) or by that over G - 1 (GRPO, guide, kepo)."""


def zero_variance(rewards: Sequence[Tensor] | Tensor) -> Tensor:
    """Whether all rewards of a group are equal [groups] bool: such a group has no advantage (compared, not computed)."""
    return torch.tensor([group.numel() == 0 or bool((group == group[0]).all()) for group in rewards], dtype=torch.bool)


def _float(group: Tensor) -> Tensor:
    if group.dim() != 1:
        raise ValueError(f"the rewards of a group are one vector, got shape {tuple(group.shape)}")
    return group.detach() if group.is_floating_point() else group.detach().to(torch.get_default_dtype())


def group_advantages(rewards: Sequence[Tensor] | Tensor, *, std: str = "none", eps: float = 1e-6) -> list[Tensor]:
    """(r - mean) / (std + eps) within each group (GRPO, arXiv 2402.03300): one vector for each group, or row of a 2-D tensor.

    `eps` is added to the deviation, after the root; with std "none" neither is used. A group whose rewards are all equal
    (or a group of one) has exactly zero advantage: the rounding of its mean is not divided by eps. Raises UserError for an
    unknown std or a negative eps.
    """
    if std not in STD_KINDS:
        raise UserError(f"advantage std {std!r} is unknown{nearest(std, STD_KINDS)}")
    if not eps >= 0:
        raise UserError(f"advantage eps needs a number of 0 or more, got {eps:g}")
    advantages = []
    for group, flat in zip(rewards, zero_variance(rewards).tolist(), strict=True):
        group = _float(group)
        centred = torch.zeros_like(group) if flat else group - group.mean()
        if std != "none" and not flat:
            centred = centred / (group.std(correction=int(std == "sample")) + eps)
        advantages.append(centred)
    return advantages


def leave_one_out(rewards: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """r_i - mean of the others of its group (RLOO, arXiv 2402.14740) = G / (G-1) (r_i - mean): one vector for each group.

    Zero for a group whose rewards are all equal. Raises UserError for a group of one, which has no others.
    """
    advantages = []
    for group, centred in zip(rewards, group_advantages(rewards), strict=True):
        if group.numel() == 1:
            raise UserError("leave-one-out advantages need groups of 2 or more, got a group of 1")
        advantages.append(centred * (group.numel() / max(group.numel() - 1, 1)))
    return advantages
