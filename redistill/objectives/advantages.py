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


def teacher_advantages(
    *, student_logp_N: Tensor, teacher_logp_N: Tensor, reference_logp_N: Tensor | None = None, scale: float = 1.0,
    clip: float | None = None,
) -> Tensor:  # fmt: skip
    """lam (log pT - log p_ref) - (log pS - log p_ref) per step [N], detached (G-OPD, arXiv 2602.12125); without a
    reference log pT - log pS, the advantage of on-policy distillation (lam = 1, where any reference cancels).

    `clip` bounds |log pT - log p_ref|. Raises UserError for another scale than 1 or a clip without a reference: they
    weigh a reward that is measured against one.
    """
    student, teacher = student_logp_N.detach(), teacher_logp_N.detach()
    if reference_logp_N is None:
        if scale != 1.0 or clip is not None:
            raise UserError("a scaled or clipped teacher reward needs a reference to be measured against")
        return teacher - student
    reference = reference_logp_N.detach()
    reward = teacher - reference
    if clip is not None:
        reward = reward.clamp(-clip, clip)
    return scale * reward - (student - reference)


def returns_to_go(values_N: Tensor, lengths: Sequence[int], discount: float) -> Tensor:
    """sum_{t' >= t} discount^(t' - t) v_t' within each row [N]; discount 0 is the values themselves, 1 the plain sum.

    Raises ValueError when the lengths do not add up to N.
    """
    if sum(lengths) != values_N.numel():
        raise ValueError(f"lengths add up to {sum(lengths)}, values to {values_N.numel()}")
    if discount == 0.0:
        return values_N
    rows = []
    for row in values_N.split(list(lengths)):
        total, back = row.new_zeros(()), []
        for value in row.flip(0):
            total = value + discount * total
            back.append(total)
        rows.append(torch.stack(back[::-1]) if back else row)
    return torch.cat(rows) if rows else values_N


def shares(scores: Tensor, members: Tensor, temperature: float) -> Tensor:
    """softmax(scores / temperature) over the members of a set [R], 0 outside; an empty set has no shares.

    With `scores` the mean log-prob of each answer, this is PPL^(-1/temperature) normalised (SCOPE, arXiv 2604.10688).
    Infinite temperature is uniform. Raises UserError for a temperature not above 0.
    """
    if not temperature > 0:
        raise UserError(f"temperature of shares needs a number above 0, got {temperature:g}")
    outside = ~members.bool()
    if bool(outside.all()):
        return torch.zeros_like(scores)
    return (scores.detach() / temperature).masked_fill(outside, -torch.inf).softmax(-1)
