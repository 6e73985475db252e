"""Group statistics of the generation methods: advantages, optimality in [0, 1], centring inside groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STDS = ("batch", "group", "none")


def advantages(rewards: Sequence[Tensor], *, std: str, floor: float, added: bool = False) -> list[Tensor]:
    """(r - mean of its group) / deviation, float64 [G] each. `std` "batch": the population deviation of all rewards of
    the step, "group": that of the group, "none": 1. The deviation is at least `floor`, or with `added` raised by it."""
    every = torch.cat(list(rewards)).double()
    found = []
    for group in rewards:
        group = group.double()
        centred = group - group.mean() if bool((group != group[0]).any()) else torch.zeros_like(group)
        if std != "none":
            spread = (every if std == "batch" else group).std(correction=0)
            centred = centred / (spread + floor if added else spread.clamp(min=floor))
        found.append(centred)
    return found


def optimality(advantage: Tensor, bound: float) -> Tensor:
    """The advantage clipped to [-bound, bound] and mapped linearly to [0, 1]: A / (2 bound) + 1/2."""
    return advantage.clamp(-bound, bound) / (2.0 * bound) + 0.5


def group_mean(values_n: Tensor, group_n: Tensor, weight_n: Tensor | None = None) -> Tensor:
    """The (weighted) mean of each member's group, at every member [n]; weights are normalised inside groups."""
    _, at_n = torch.unique(group_n, return_inverse=True)
    weight_n = torch.ones_like(values_n) if weight_n is None else weight_n
    groups = int(at_n.max()) + 1 if len(at_n) else 0
    sums = values_n.new_zeros(groups).index_add(0, at_n, weight_n * values_n)
    return (sums / values_n.new_zeros(groups).index_add(0, at_n, weight_n))[at_n]


def softmax_weights(score_n: Tensor, group_n: Tensor, temperature: float) -> Tensor:
    """exp(score / temperature) normalised inside groups [n]."""
    _, at_n = torch.unique(group_n, return_inverse=True)
    groups = int(at_n.max()) + 1 if len(at_n) else 0
    top = score_n.new_full((groups,), -torch.inf).scatter_reduce(0, at_n, score_n, "amax")
    raw = ((score_n - top[at_n]) / temperature).exp()
    return raw / raw.new_zeros(groups).index_add(0, at_n, raw)[at_n]


def pool_weights(chosen_n: Tensor, group_n: Tensor) -> Tensor:
    """1 for the chosen members [n] (bool), and for all members of a group in which none is chosen."""
    chosen = chosen_n.double()
    return torch.where(group_mean(chosen, group_n) > 0, chosen, torch.ones_like(chosen))
